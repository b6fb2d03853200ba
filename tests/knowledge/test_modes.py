"""Inspecting a network leaves it unchanged."""

from __future__ import annotations

import math
from typing import Self

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from krscale.knowledge.modes import copy_of, left_as_it_was


class Adapted(nn.Module):
    """A layer that adds its adapter to its weight in eval mode, as LoRA does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))
        self.adapter = nn.Parameter(torch.full((2, 2), 0.25))
        self.merged = False

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.merged == mode:
            self.weight.data += -self.adapter if mode else self.adapter
            self.merged = not mode
        return self


class Observed(nn.Module):
    """Records what passes through it in any mode, as observers of quantisation do."""

    largest: Tensor
    per_channel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("largest", torch.tensor(1.0))
        self.register_buffer("per_channel", torch.empty(0))
        self.register_buffer("replaced", torch.zeros(1))

    def forward(self, values: Tensor) -> Tensor:
        self.largest.copy_(values.max())
        self.per_channel.resize_(values.shape[1]).fill_(7.0)
        self.replaced = self.replaced + 1.0
        return values


def test_every_module_gets_its_own_mode_back() -> None:
    network = nn.Sequential(Adapted(), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)))
    network[1][1].eval()
    with left_as_it_was(network):
        network.eval()
    assert [m.training for m in network.modules()] == [True, True, True, True, False]


@pytest.mark.parametrize("training", [True, False])
def test_what_train_does_is_done_again(training: bool) -> None:
    network = nn.Sequential(Adapted()).train(training)
    weight = network[0].weight.detach().clone()
    with left_as_it_was(network):
        network.train(not training)
    assert network[0].merged != training
    assert torch.equal(network[0].weight, weight)


def test_buffers_have_their_values() -> None:
    network = Observed()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    kept = dict(network.named_buffers())
    with left_as_it_was(network):
        network(torch.full((1, 3), 9.0))
    for name, buffer in network.named_buffers():
        assert buffer is kept[name]
        assert torch.equal(buffer, before[name])


def test_weights_that_a_hook_computes() -> None:
    network = nn.Linear(2, 2)
    prune.l1_unstructured(network, "weight", 1)
    weight = network.weight
    with left_as_it_was(network), torch.no_grad():
        drawn = {"weight_orig": torch.randn(2, 2), "bias": torch.randn(2)}
        torch.func.functional_call(network, drawn, (torch.ones(1, 2),))
        assert network.weight is not weight
    assert network.weight is weight


def test_buffers_that_cannot_be_compared_or_written() -> None:
    network = nn.Module()
    network.register_buffer("sparse", torch.eye(3).to_sparse())
    network.register_buffer("expanded", torch.full((1,), math.nan).expand(4))
    network.register_buffer("nan", torch.full((2,), math.nan))
    with torch.inference_mode():
        network.register_buffer("inference", torch.zeros(2))
    version = network.nan._version
    with left_as_it_was(network), torch.inference_mode():
        network.inference += 1.0
    assert network.inference.tolist() == [0.0, 0.0]
    assert network.nan._version == version


def test_a_network_that_is_not_to_be_trained() -> None:
    class Served(nn.Linear):
        def train(self, mode: bool = True) -> Self:
            if mode:
                raise NotImplementedError("for inference only")
            return super().train(mode)

    network = nn.Sequential(nn.Dropout(), Served(1, 1))
    with left_as_it_was(network):
        network.eval()
    assert [module.training for module in network.modules()] == [True, True, True]


def test_a_module_without_a_switch_of_its_own() -> None:
    network = nn.Sequential(nn.Dropout())
    network.train = lambda mode=True: network  # type: ignore[method-assign]
    with left_as_it_was(network):
        network.training = False
    assert network.training


class Keeping(nn.Module):
    """Keeps its last output, with its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(2, 2), torch.zeros(1)

    def forward(self, values: Tensor) -> Tensor:
        self.last = self.layer(values)
        return self.last


def test_a_network_is_copied_with_weights_that_a_hook_computes() -> None:
    pruned, keeping = nn.Linear(2, 2), Keeping()
    prune.l1_unstructured(pruned, "weight", 0.5)
    network, values = nn.Sequential(pruned, keeping), torch.ones(1, 2)
    network(values)
    copied = copy_of(network)
    assert torch.equal(copied(values), network(values))
    with torch.no_grad():
        pruned.weight_orig.add_(1.0)  # type: ignore[operator]
    assert not torch.equal(copied(values), network(values)), "the copy has weights of its own"
    copied(values).sum().backward()
    assert copied[0].weight_orig.grad is not None
    assert pruned.weight_orig.grad is None
