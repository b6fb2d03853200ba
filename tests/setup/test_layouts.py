"""The layouts of a network's taps, by the settings of an experiment."""

import pytest
import torch
from torch import nn

from krscale.config import ModelConfig
from krscale.knowledge.taps import LAYOUTS_ATTRIBUTE
from krscale.setup.layouts import settle_taps


class Block(nn.Module):
    def __init__(self, last: bool) -> None:
        super().__init__()
        self.convolution, self.last = nn.Conv2d(1, 6, 3, padding=1), last

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.convolution(images)
        return maps.movedim(1, -1) if self.last else maps


class Net(nn.Module):
    def __init__(self, last: bool) -> None:
        super().__init__()
        self.block, self.head = Block(last), nn.Linear(6, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.block(images)
        return self.head(maps.mean(dim=(1, 2) if self.block.last else (2, 3)))


@pytest.mark.parametrize("first", [False, True])
def test_networks_given_one_after_another_by_one_name_have_their_own_layouts(first: bool) -> None:
    config = ModelConfig(model="object:teacher.Net", options={}, taps=("block",))
    for last in (first, not first):
        network = Net(last)
        settle_taps(network, config, (1, 8, 8), "teacher")
        expected = "channels_last" if last else "channels_first"
        assert getattr(network, LAYOUTS_ATTRIBUTE)["block"] == expected
