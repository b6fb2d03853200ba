"""A student without kinks, for tests that compare two trainings to float tolerance.

A ReLU's derivative jumps at zero, where the plain background of a digit may put whole areas: a
difference of 1e-8 then becomes one of 1e-4, between any two ways to add up the same sum.
"""

from torch import Tensor, nn


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
