python tune_photos.py
