"""Residual network for small images, with one dial for its capacity."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from krscale.models.arguments import require_counts, stage_ends


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm beside a shortcut; ReLU after the sum."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and in_channels == channels
            else nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map `[B, in_channels, H, W]` to `[B, channels, H / stride, W / stride]`."""
        residual = torch.relu(self.norm1(self.conv1(features)))
        residual = self.norm2(self.conv2(residual))
        return torch.relu(residual + self.shortcut(features))


class ResNet(nn.Module):
    """A stem, stages of basic blocks, global mean pooling and a linear classifier.

    Attributes:
        tap_paths: Every block in depth order but the last, whose read-out the classifier is.
        stage_ends: For each stage the 1-based number of its last tap, the classifier included.
    """

    def __init__(
        self, num_classes: int, in_channels: int, stage_widths: Sequence[int], num_blocks: int
    ) -> None:
        super().__init__()
        channels = stage_widths[0]
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )
        stages: list[nn.Module] = []
        for number, stage_width in enumerate(stage_widths):
            blocks: list[nn.Module] = []
            for block in range(num_blocks):
                stride = 2 if number > 0 and block == 0 else 1
                blocks.append(BasicBlock(channels, stage_width, stride))
                channels = stage_width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(channels, num_classes)
        paths = [f"stages.{s}.{b}" for s in range(len(stage_widths)) for b in range(num_blocks)]
        self.tap_paths: tuple[str, ...] = tuple(paths[:-1])
        self.stage_ends: tuple[int, ...] = stage_ends([num_blocks] * len(stage_widths))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, in_channels, H, W]` to logits `[B, K]`."""
        features: Tensor = self.stages(self.stem(images))
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits


def resnet(
    num_classes: int, in_channels: int, width: int, num_blocks: int = 2, num_stages: int = 3
) -> ResNet:
    """Build the residual network of He et al. for small images (CIFAR style).

    Source: He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition*, CVPR 2016,
    section 4.2, with projection shortcuts. The stem keeps the resolution, so images of 8 to 64
    pixels suit it.

    Args:
        num_classes: Logits `K`.
        in_channels: Channels of the images.
        width: Channels of the first stage; each further stage doubles them and halves the
            resolution. The number of parameters grows with its square.
        num_blocks: Basic blocks in each stage.
        num_stages: Stages.

    Returns:
        A network with `D = num_stages * num_blocks` taps.

    Raises:
        UserError: If an argument is not a whole number of at least 1.
    """
    require_counts(
        "resnet",
        num_classes=num_classes,
        in_channels=in_channels,
        width=width,
        num_blocks=num_blocks,
        num_stages=num_stages,
    )
    widths = [width * 2**stage for stage in range(num_stages)]
    return ResNet(num_classes, in_channels, widths, num_blocks)
