# train.py is in the repository alone, not in the package.
git clone https://github.com/huggingface/pytorch-image-models
pip install timm==1.0.29 torch==2.13.0 torchvision==0.28.0
