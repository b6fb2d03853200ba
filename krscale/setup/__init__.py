"""Resolve an experiment to its networks, sizes, teacher and store, each only once."""
