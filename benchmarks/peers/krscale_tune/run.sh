PYTHONPATH=. krscale tune photos.toml
