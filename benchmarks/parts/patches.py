"""A network that is cheap on large images: it processes patches as if they were pixels."""

from __future__ import annotations

from torch import Tensor, nn

PATCH = 8


class Patches(nn.Module):
    """Patches of 8x8 pixels, then two convolutions; as a teacher or as a student."""

    tap_paths = ("patches", "first")
    stage_ends = (1, 2, 3)

    def __init__(self, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.patches = nn.Sequential(
            nn.Conv2d(in_channels, width, PATCH, PATCH, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.first = self._block(width)
        self.second = self._block(width)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `[B, K]`."""
        features: Tensor = self.second(self.first(self.patches(images)))
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits

    def _block(self, width: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
