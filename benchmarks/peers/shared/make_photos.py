"""Write photos/{train,val,test}/CLASS/NUMBER.png: 1,797 digits in colours, 32 x 32 pixels."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

digits = load_digits()
random = np.random.default_rng(0)
order = random.permutation(len(digits.images))
splits = ["test"] * 300 + ["val"] * 300 + ["train"] * (len(order) - 600)
for number, split in zip(order, splits, strict=True):
    strokes = Image.fromarray((digits.images[number] / 16 * 255).astype("uint8"))
    share = np.asarray(strokes.resize((32, 32), Image.Resampling.BICUBIC))[:, :, None] / 255
    paper, ink = random.uniform(0.0, 0.4, 3), random.uniform(0.6, 1.0, 3)
    pixels = paper + (ink - paper) * share + random.normal(0, 0.05, (32, 32, 3))
    folder = Path("photos") / split / str(digits.target[number])
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels.clip(0, 1) * 255).astype("uint8")).save(folder / f"{number}.png")
