"""Splits of a source's images: cutting, limiting, and images that are in two of them."""
