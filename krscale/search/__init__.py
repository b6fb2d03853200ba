"""A whole search: its space, its studies, the trials on Ray, and the result."""
