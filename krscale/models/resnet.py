"""Residual network for small images, with one dial for its capacity."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from krscale.models.staged import StagedNetwork, build_stages, require_counts


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


def resnet(
    num_classes: int,
    in_channels: int,
    width: int,
    num_blocks: int = 2,
    num_stages: int = 3,
    stem_channels: int | None = None,
) -> StagedNetwork:
    """Build the residual network of He et al. for small images (CIFAR style).

    Source: He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition*, CVPR 2016,
    section 4.2, with projection shortcuts. The stem keeps the resolution, so it suits images of 8
    to 64 pixels.

    Args:
        num_classes: Number of logits `K`.
        in_channels: Channels of the images.
        width: Channels of the first stage; each further stage doubles them and halves the
            resolution. The number of parameters grows with its square.
        num_blocks: Number of basic blocks in each stage.
        num_stages: Number of stages.
        stem_channels: Channels of the stem; None gives it the width of the first stage. ResNet32x4
            and ResNet8x4 of the distillation literature have width 64 and a stem of 32.

    Returns:
        A network with `D = num_stages * num_blocks` taps.

    Raises:
        UserError: If an argument is not a whole number in its range.

    Example:
        >>> network = resnet(10, 3, width=16, num_blocks=3)  # ResNet-20
        >>> sum(parameter.numel() for parameter in network.parameters())
        272474
    """
    stem_channels = width if stem_channels is None else stem_channels
    require_counts(
        "resnet",
        num_classes=num_classes,
        in_channels=in_channels,
        width=width,
        num_blocks=num_blocks,
        num_stages=num_stages,
        stem_channels=stem_channels,
    )
    widths = [width * 2**stage for stage in range(num_stages)]
    stem = nn.Sequential(
        nn.Conv2d(in_channels, stem_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(stem_channels),
        nn.ReLU(),
    )
    stages = build_stages(BasicBlock, stem_channels, widths, num_blocks)
    return StagedNetwork(stem, stages, nn.Identity(), nn.Linear(widths[-1], num_classes))
