"""Images that are learned in seconds, and a network that has learned them."""

from __future__ import annotations

import torch
from foreign_networks import LikeResNet
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

MEAN, STD = 0.5, 0.25


def gratings(seed: int, count: int) -> TensorDataset:
    """Noise plus one of three gratings, as normalised 8-bit pixels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    wave = (torch.arange(12) * torch.tensor([1.0, 2.0, 3.0])[:, None]).sin()
    images = torch.randn(count, 1, 12, 12, generator=generator) * 0.5
    images += wave[labels][:, None, None, :]
    pixels = ((images + 3) / 6 * 255).round().clamp(0, 255) / 255
    return TensorDataset((pixels - MEAN) / STD, labels)


def trained(width: int = 6) -> nn.Module:
    """Return a network that is trained to classify the gratings."""
    torch.manual_seed(0)
    network = LikeResNet(width)
    optimiser = torch.optim.Adam(network.parameters(), 0.02)
    images, labels = gratings(0, 120).tensors
    for _ in range(30):
        optimiser.zero_grad()
        cross_entropy(network(images), labels).backward()
        optimiser.step()
    return network
