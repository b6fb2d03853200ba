PYTHONPATH=. python pytorch-image-models/train.py --device-modules my_timm \
    --data-dir photos --val-split test --num-classes 10 --input-size 3 32 32 \
    --model my_student --kd-model-name my_teacher --kd-temperature 4 \
    --task-loss-weight 0.5 --distill-loss-weight 0.9 \
    --epochs 10 --warmup-epochs 1 --cooldown-epochs 0 --batch-size 64 \
    --opt sgd --lr 0.1 --weight-decay 5e-4 \
    --scale 0.9 1 --ratio 1 1 --hflip 0 --color-jitter 0 --smoothing 0 \
    --crop-pct 1 --device cpu --workers 0 --seed 0
