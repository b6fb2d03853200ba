"""Write a small folder of JPEG images with the layout of ImageNet, to run jobs on.

    python scripts/synthetic_images.py photos
    python scripts/synthetic_images.py imagenet --splits

The first writes photos/CLASS/IMAGE.JPEG, the second imagenet/train/CLASS/IMAGE.JPEG and the same in
imagenet/val. Images have many sizes and shapes. Each class is a grating with its own direction and
colours, so that a network learns it in seconds. The same arguments write the same pixels.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

SIDES = (72, 160)
"""Shortest and longest side in pixels: more than the 64 to which the jobs reduce them."""
QUALITY = 85


def draw(label: int, num_classes: int, generator: np.random.Generator) -> Image.Image:
    """Return one image of a class: a grating, its colours and noise.

    Args:
        label: The class, from 0.
        num_classes: Number of classes.
        generator: Draws size, phase, brightness and noise.

    >>> draw(0, 4, np.random.default_rng(0)).mode
    'RGB'
    """
    height, width = (int(side) for side in generator.integers(SIDES[0], SIDES[1] + 1, 2))
    rows, columns = np.mgrid[:height, :width]
    angle = np.pi * label / num_classes
    wave = np.sin(
        (columns * np.cos(angle) + rows * np.sin(angle)) / 6 + generator.uniform(0, 2 * np.pi)
    )
    colour = np.random.default_rng(label).uniform(40, 110, 3) * generator.uniform(0.8, 1.2)
    noise = generator.normal(0, 20, (height, width, 1))
    return Image.fromarray((128 + wave[..., None] * colour + noise).clip(0, 255).astype(np.uint8))


def write_folder(folder: Path, num_classes: int, num_images: int, seed: int) -> int:
    """Write `folder/CLASS/IMAGE.JPEG`; return the number of images.

    Args:
        folder: Created if missing; images of the same names are overwritten.
        num_classes: Number of folders, named as those of ImageNet (`n00000001`).
        num_images: Number of images in each folder.
        seed: Seed of the content; each split has its own.
    """
    for label in range(num_classes):
        place = folder / f"n{label:08d}"
        place.mkdir(parents=True, exist_ok=True)
        for number in range(num_images):
            image = draw(label, num_classes, np.random.default_rng([seed, label, number]))
            image.save(place / f"{place.name}_{number}.JPEG", quality=QUALITY)
    return num_classes * num_images


def main() -> int:
    """Write what the arguments request; refuse a folder that exists."""
    arguments = _arguments()
    folder: Path = arguments.folder
    if folder.exists():
        print(f"{folder}: is there already; name a folder that is not", file=sys.stderr)
        return 2
    splits = {"train": arguments.images, "val": max(1, arguments.images // 4)}
    named = splits if arguments.splits else {".": arguments.images}
    written = sum(
        write_folder(folder / name, arguments.classes, number, seed)
        for seed, (name, number) in enumerate(named.items())
    )
    print(f"{folder}: {written} images of {arguments.classes} classes")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--classes", type=_count, default=4)
    parser.add_argument("--images", type=_count, default=40, help="of each class")
    parser.add_argument("--splits", action="store_true", help="train and val, as ImageNet has them")
    return parser.parse_args()


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
