"""Inverted-residual network for small images: few parameters and FLOPs for its depth."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from krscale.models.staged import StagedNetwork, build_stages, require_counts

HEAD_EXPANSION = 4
"""Channels before pooling, as a multiple of the last stage's: 320 to 1280 in the paper."""


class InvertedResidual(nn.Module):
    """Widen by a 1x1 convolution, filter each channel by 3x3, narrow again without activation."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.widen = _convolution(in_channels, hidden, 1)
        self.filter = _convolution(hidden, hidden, 3, stride=stride, groups=hidden)
        self.narrow = nn.Sequential(
            nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )
        self.has_shortcut = stride == 1 and in_channels == channels

    def forward(self, features: Tensor) -> Tensor:
        """Map `[B, in_channels, H, W]` to `[B, channels, H / stride, W / stride]`."""
        narrowed: Tensor = self.narrow(self.filter(self.widen(features)))
        return features + narrowed if self.has_shortcut else narrowed


def mobilenet(
    num_classes: int,
    in_channels: int,
    width: int,
    num_blocks: int = 2,
    num_stages: int = 3,
    expansion: int = 6,
) -> StagedNetwork:
    """Build a network of the blocks of MobileNetV2, arranged for small images.

    Source: Sandler, Howard, Zhu, Zhmoginov, Chen, *MobileNetV2: Inverted Residuals and Linear
    Bottlenecks*, CVPR 2018. Blocks, activation and the widening before pooling are the paper's;
    the stages are those of `resnet` (the paper's start by reducing 224 pixels to 56).

    Args:
        num_classes: Number of logits `K`.
        in_channels: Channels of the images.
        width: Channels of the first stage; each further stage doubles them and halves the
            resolution.
        num_blocks: Number of inverted residuals in each stage.
        num_stages: Number of stages.
        expansion: Channels inside a block, as a multiple of those entering it.

    Returns:
        A network with `D = num_stages * num_blocks` taps.

    Raises:
        UserError: If an argument is not a whole number in its range.

    Example:
        >>> network = mobilenet(10, 3, width=8)
        >>> len(network.tap_paths), network.stage_ends  # the sixth tap is the classifier
        (5, (2, 4, 6))
    """
    require_counts(
        "mobilenet",
        num_classes=num_classes,
        in_channels=in_channels,
        width=width,
        num_blocks=num_blocks,
        num_stages=num_stages,
        expansion=expansion,
    )
    widths = [width * 2**stage for stage in range(num_stages)]
    block = partial(InvertedResidual, expansion=expansion)
    stages = build_stages(block, width, widths, num_blocks)
    num_features = HEAD_EXPANSION * widths[-1]
    last = _convolution(widths[-1], num_features, 1)
    stem = _convolution(in_channels, width, 3)
    return StagedNetwork(stem, stages, last, nn.Linear(num_features, num_classes))


def _convolution(
    in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(
            in_channels, channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        ),
        nn.BatchNorm2d(channels),
        nn.ReLU6(),
    )
