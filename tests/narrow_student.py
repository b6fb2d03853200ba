"""A network with maps of 1x1 before a batch norm, for digits of 8x8."""

from torch import Tensor, nn


class Narrow(nn.Module):
    tap_paths = ("first",)
    stage_ends = (1, 2)

    def __init__(self, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(in_channels, width, 8, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.first(images).mean(dim=(2, 3)))
