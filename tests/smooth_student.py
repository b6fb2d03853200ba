"""A student without kinks, for tests that compare two trainings to float tolerance.

A ReLU's derivative jumps at zero, where whole areas of a digit's plain background may lie. A
difference of 1e-8 between two ways to add up the same sum then becomes one of 1e-4.
"""

import os
import signal
import time
from pathlib import Path

import torch
from torch import Tensor, nn

STEPS_BEFORE_DEATH = 14 + 5
"""In the second epoch of digits, in batches of 77."""


class Smooth(nn.Module):
    tap_paths = ("first",)
    stage_ends = (1, 2)

    def __init__(self, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.GELU(),
        )
        self.second = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.GELU(),
        )
        self.classifier = nn.Linear(2 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.second(self.first(images)).mean(dim=(2, 3)))


class Mortal(Smooth):
    """Kills its process once with SIGKILL, and records that in `folder`."""

    def __init__(self, folder: str, **arguments: int) -> None:
        super().__init__(**arguments)
        self.died, self.num_steps = Path(folder) / "died", 0

    def forward(self, images: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            time.sleep(0.05)  # makes an epoch longer than it takes to kill the driver
            self.num_steps += 1
            if self.num_steps > STEPS_BEFORE_DEATH and not self.died.exists():
                self.died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(images)
