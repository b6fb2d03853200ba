"""A teacher that has learned, a student that has not, and the images of both."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from foreign_networks import LikeResNet
from kr_losses import Pairs, learn, make_pairs
from torch import nn


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return make_pairs()


@pytest.fixture(scope="module")
def trained(pairs: Pairs) -> nn.Module:
    torch.manual_seed(0)
    return learn(LikeResNet(6), pairs)


@pytest.fixture
def teacher(trained: nn.Module) -> nn.Module:
    return copy.deepcopy(trained)


@pytest.fixture
def student() -> nn.Module:
    torch.manual_seed(1)
    return LikeResNet(3)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
