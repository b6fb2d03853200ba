"""Wide residual network: pre-activation blocks, a given depth, and one dial for the width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from krscale.errors import UserError
from krscale.models.staged import StagedNetwork, build_stages, require_counts

STEM_CHANNELS = 16
"""Channels of the stem in the paper; narrower networks have a stem of their own width."""


class PreactivationBlock(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions, beside a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut = (
            None
            if stride == 1 and in_channels == channels
            else nn.Conv2d(in_channels, channels, 1, stride, bias=False)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map `[B, in_channels, H, W]` to `[B, channels, H / stride, W / stride]`."""
        activated = torch.relu(self.norm1(features))
        residual = self.conv2(torch.relu(self.norm2(self.conv1(activated))))
        kept = features if self.shortcut is None else self.shortcut(activated)
        summed: Tensor = residual + kept
        return summed


def wide_resnet(num_classes: int, in_channels: int, width: int, depth: int = 16) -> StagedNetwork:
    """Build a wide residual network (WRN-`depth`-`width / 16`).

    Source: Zagoruyko, Komodakis, *Wide Residual Networks*, BMVC 2016.

    Args:
        num_classes: Number of logits `K`.
        in_channels: Channels of the images.
        width: Channels of the first of three stages; each further stage doubles them and halves
            the resolution. It is 16 times the paper's widening factor: WRN-40-2 has width 32.
        depth: Number of convolutions on the longest path: 10, 16, 22, 28, 40, ...

    Returns:
        A network with `D = (depth - 4) / 2` taps.

    Raises:
        UserError: If an argument is not a whole number in its range, or no network has this
            depth.

    Example:
        >>> network = wide_resnet(100, 3, width=32, depth=40)  # WRN-40-2
        >>> sum(parameter.numel() for parameter in network.parameters())
        2255156
    """
    require_counts(
        "wide_resnet", num_classes=num_classes, in_channels=in_channels, width=width, depth=depth
    )
    num_blocks, rest = divmod(depth - 4, 6)
    if rest or num_blocks < 1:
        raise UserError(
            f"wide_resnet: depth must be 4 more than a multiple of 6, at least 10: "
            f"10, 16, 22, 28, 40, ... (got {depth})."
        )
    widths = [width, 2 * width, 4 * width]
    stem_channels = min(STEM_CHANNELS, width)
    stem = nn.Conv2d(in_channels, stem_channels, 3, padding=1, bias=False)
    stages = build_stages(PreactivationBlock, stem_channels, widths, num_blocks)
    last = nn.Sequential(nn.BatchNorm2d(widths[-1]), nn.ReLU())
    return StagedNetwork(stem, stages, last, nn.Linear(widths[-1], num_classes))
