"""The sources of images, one module each, and their registry."""
