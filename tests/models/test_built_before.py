"""Networks that share weights with one that was built before are refused as students."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import nn

from krscale.errors import UserError
from krscale.models import built_before
from krscale.models.built_before import refuse_built_before

SHARED = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
FILTER = torch.ones(1, 1, 3, 3)


def test_a_new_network_each_time_is_taken() -> None:
    for _ in range(3):
        refuse_built_before(nn.Linear(2, 2), "mine:build", "student")
        refuse_built_before(nn.Sequential(copy.deepcopy(SHARED)), "mine:build", "student")


@pytest.mark.parametrize(
    "build",
    [
        lambda network: network,
        lambda network: nn.Sequential(network, nn.Flatten(), nn.Linear(4, 2)),
        lambda network: nn.Sequential(nn.Linear(3, 3), network[0]),
        # Its weights are frozen, and its statistics are not.
        lambda network: nn.Sequential(nn.Linear(3, 3), network[1].requires_grad_(False)),
        lambda network: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm2d(2, affine=False), network),
    ],
)
def test_the_same_layers_again_are_refused(build) -> None:
    network = copy.deepcopy(SHARED)
    refuse_built_before(build(network), "mine:build", "student")
    said = r"^ladder\.students\.tiny\.model: mine:build returns '\S+' of a network that it has ret"
    with pytest.raises(UserError, match=said):
        refuse_built_before(build(network), "mine:build", "ladder.students.tiny")


def test_what_no_training_changes_may_be_shared() -> None:
    frozen = copy.deepcopy(SHARED[0]).requires_grad_(False)
    for _ in range(2):
        network = nn.Sequential(frozen, nn.Linear(2, 2))
        network.register_buffer("filter", FILTER)
        refuse_built_before(network, "mine:build", "student")


def test_a_tied_weight_is_no_second_network() -> None:
    first = nn.Linear(2, 2)
    second = nn.Linear(2, 2)
    second.weight = first.weight
    refuse_built_before(nn.Sequential(first, second), "mine:build", "student")


def test_what_is_gone_is_forgotten() -> None:
    before = len(built_before._seen)
    for _ in range(50):
        refuse_built_before(nn.Linear(2, 2), "mine:build", "student")
    gc.collect()
    assert len(built_before._seen) <= before + 2
