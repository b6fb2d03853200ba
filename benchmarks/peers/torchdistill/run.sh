PYTHONPATH=. python torchdistill/examples/torchvision/image_classification.py --config photos.yaml --device cpu --seed 0
