pip install 'ray[tune]==2.60.0' optuna==5.0.0 torch==2.13.0 torchvision==0.28.0
