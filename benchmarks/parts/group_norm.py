"""The student of the benchmark without batch norm, whose statistics workers would exchange."""

from __future__ import annotations

import math

from torch import nn

from krscale.models.resnet import resnet
from krscale.models.staged import StagedNetwork

NUM_GROUPS = 16
"""Groups of every norm; fewer if this number does not divide the channels."""


def group_norm_resnet(num_classes: int, in_channels: int, width: int) -> StagedNetwork:
    """Return krscale's residual network with group norm in place of every batch norm.

    Source: Wu, He, *Group Normalization*, ECCV 2018, arXiv 1803.08494.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the images.
        width: Channels of the first stage.
    """
    network = resnet(num_classes, in_channels, width)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                num_groups = math.gcd(NUM_GROUPS, child.num_features)
                setattr(module, name, nn.GroupNorm(num_groups, child.num_features))
    return network
