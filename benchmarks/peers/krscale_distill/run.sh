PYTHONPATH=. krscale distill photos.toml
