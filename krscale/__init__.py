"""krscale: which student size is enough, trained how, and how accurate will it be?"""
