"""The benchmark's student without batch norm."""

from __future__ import annotations

import torch
from parts.group_norm import group_norm_resnet
from torch import nn

from krscale.models.resnet import resnet


def test_group_norm_is_in_place_of_every_batch_norm() -> None:
    kinds = [type(module) for module in resnet(3, 1, 8).modules()]
    found = [type(module) for module in group_norm_resnet(3, 1, 8).modules()]
    assert kinds.count(nn.BatchNorm2d) == found.count(nn.GroupNorm) > 0
    assert nn.BatchNorm2d not in found


def test_a_sample_does_not_depend_on_its_batch() -> None:
    network = group_norm_resnet(3, 1, 8).train()
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(images)[:1], network(images[:1]))
