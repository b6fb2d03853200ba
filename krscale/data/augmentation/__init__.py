"""Views of images: seeded augmentation, and images mixed from two."""
