"""A teacher that has learned, a student that has not, and the images of both."""

from __future__ import annotations

import copy

import pytest
import torch
from foreign_networks import LikeResNet
from kr_losses import Pairs, learn, make_pairs
from torch import nn


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return make_pairs()


@pytest.fixture(scope="session")
def trained() -> nn.Module:
    torch.manual_seed(0)
    return learn(LikeResNet(6), make_pairs())


@pytest.fixture
def teacher(trained: nn.Module) -> nn.Module:
    return copy.deepcopy(trained)


@pytest.fixture
def student() -> nn.Module:
    torch.manual_seed(1)
    return LikeResNet(3)
