"""A folder of small images, and a teacher that is trained on such images without krscale.

The teacher takes images of 32 pixels in BGR order and in 0..255, with its own mean and deviation;
the images are smaller.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

NAMES = ("blue cross", "blue disc", "blue frame", "red cross", "red disc", "red frame")
MEAN, STD = (90.0, 110.0, 130.0), (40.0, 50.0, 60.0)
"""Blue, green, red."""
INPUT_SIZE = 32
SETTINGS = (
    "teacher.model=own_teacher:Own",
    "teacher.options={}",
    f"teacher.preprocessing.mean={list(MEAN)}",
    f"teacher.preprocessing.std={list(STD)}",
    "teacher.preprocessing.pixel_range=0..255",
    "teacher.preprocessing.channel_order=bgr",
    f"teacher.preprocessing.input_size={INPUT_SIZE}",
)


class Own(nn.Module):
    """Three convolutions and a classifier; names its taps, but describes no preprocessing."""

    tap_paths = ("blocks.0", "blocks.1")

    def __init__(self, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        sizes = [in_channels, width, width, 2 * width]
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 5, 2, 2), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in itertools.pairwise(sizes)
        )
        self.classifier = nn.Linear(2 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        for block in self.blocks:
            images = block(images)
        return self.classifier(images.mean(dim=(2, 3)))


class Probabilities(Own):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).softmax(dim=1)


class Shares(Own):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).sigmoid()


class Described(Own):
    """The same with a description of its preprocessing, under the names that timm uses."""

    pretrained_cfg = {  # noqa: RUF012
        "mean": MEAN,
        "std": STD,
        "pixel_range": "0..255",
        "channel_order": "bgr",
        "input_size": (3, INPUT_SIZE, INPUT_SIZE),
        "interpolation": "bilinear",
    }


def draw_images(num: int, height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`[num, height, width, 3]` uint8 and their classes: coloured shapes on grey noise."""
    random = np.random.default_rng(seed)
    labels = np.arange(num) % len(NAMES)
    images = random.integers(0, 110, (num, height, width, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:height, :width]
    for image, label in zip(images, labels, strict=True):
        y, x = height / 2 + random.uniform(-2, 2), width / 2 + random.uniform(-2, 2)
        size = min(height, width) * random.uniform(0.25, 0.35)
        away = np.maximum(abs(rows - y), abs(columns - x))
        mask = (
            np.minimum(abs(rows - y), abs(columns - x)) < size / 4,
            np.hypot(rows - y, columns - x) < size,
            (away < size) & (away > size / 2),
        )[label % 3] & (away < size)
        channel = 2 if label < 3 else 0
        image[mask, channel] = random.integers(130, 255)
    return images, labels


def images() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return images, labels and class names, as a user's own callable source does."""
    return *draw_images(420, 16, 16), NAMES


def write_folder(folder: Path, num: int, height: int = 16, width: int = 16) -> Path:
    """Write PNG files into one folder per class."""
    for number, (image, label) in enumerate(zip(*draw_images(num, height, width), strict=True)):
        path = folder / NAMES[label] / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def train(path: Path, order: tuple[int, ...] = (0, 1, 2, 3, 4, 5), size: int = 16) -> Path:
    """Train a teacher whose output `order[i]` is class i of the images; write its weights."""
    torch.manual_seed(0)
    network = Own(len(NAMES), 3, 8)
    pixels, labels = draw_images(1200, size, size, seed=1)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().flip(1)
    images = F.interpolate(images, (INPUT_SIZE, INPUT_SIZE), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    images = (images - mean) / std
    targets = torch.tensor(order)[torch.from_numpy(labels)]
    optimiser = torch.optim.AdamW(network.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, total_iters=8)
    for epoch in range(8):
        for rows in torch.randperm(1200, generator=torch.Generator().manual_seed(epoch)).split(64):
            optimiser.zero_grad()
            F.cross_entropy(network(images[rows]), targets[rows]).backward()
            optimiser.step()
        schedule.step()
    save_file(network.state_dict(), path)
    return path
