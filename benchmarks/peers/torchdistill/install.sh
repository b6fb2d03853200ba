# The example script that trains is in the repository alone, not in the package.
git clone https://github.com/yoshitomo-matsubara/torchdistill
pip install torchdistill==1.1.5 torch==2.13.0 torchvision==0.28.0
