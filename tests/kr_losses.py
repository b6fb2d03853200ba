"""Images of three gratings, training on them, and a `KRLoss` of two networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from krscale import KRLoss

Pairs = list[tuple[Tensor, Tensor]]
NUM_IMAGES, BATCH = 120, 40


def make_pairs(seed: int = 0) -> Pairs:
    """Noise plus one of three gratings: easy to classify, but not from a single pixel."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(NUM_IMAGES) % 3
    wave = torch.arange(12) * torch.tensor([1.0, 2.0, 3.0])[:, None]
    images = torch.randn(NUM_IMAGES, 1, 12, 12, generator=generator) * 0.5
    images += wave.sin()[labels][:, None, None, :]
    return [(images[i : i + BATCH], labels[i : i + BATCH]) for i in range(0, NUM_IMAGES, BATCH)]


def learn(network: nn.Module, pairs: Pairs, steps: int = 40) -> nn.Module:
    optimiser = torch.optim.Adam(network.parameters(), 0.02)
    for step in range(steps):
        images, labels = pairs[step % len(pairs)]
        optimiser.zero_grad()
        cross_entropy(network(images), labels).backward()
        optimiser.step()
    return network


def make(teacher: nn.Module, student: nn.Module, pairs: Pairs, **settings: Any) -> KRLoss:
    torch.manual_seed(2)
    return KRLoss.from_networks(teacher, student, pairs, **{"granularity": 3, **settings})


def grads(*modules: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for m in modules for p in m.parameters() if p.grad is not None]
