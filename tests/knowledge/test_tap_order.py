"""Taps that are named in another order than the network runs them are refused."""

from __future__ import annotations

from threading import Thread

import pytest
import torch
from foreign_networks import LikeResNet
from torch import Tensor, nn

from krscale.errors import UserError
from krscale.knowledge.layouts import zeros
from krscale.knowledge.tap_order import check_depth_order
from krscale.models.tapped import TappedNetwork

IMAGES = torch.randn(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))


class Again(nn.Module):
    """A network that runs its first block once more at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.middle = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1)
        self.head = nn.Linear(1, 2)

    def forward(self, images: Tensor) -> Tensor:
        found = self.shared(self.middle(self.shared(images)))
        logits: Tensor = self.head(found.mean(dim=(2, 3)))
        return logits


@pytest.mark.parametrize(
    ("network", "paths"),
    [
        (LikeResNet, ("layer1.0", "layer1.1", "layer2.0")),
        (LikeResNet, ("layer2.0",)),
        (LikeResNet, ("layer1.1", "layer1")),  # a part ends before the whole
        (Again, ("middle", "shared")),
    ],
)
def test_the_order_in_which_blocks_run_is_that_of_depth(
    network: type[nn.Module], paths: tuple[str, ...]
) -> None:
    model = network()
    model.train()
    check_depth_order(model, paths, IMAGES, "teacher.taps")
    assert model.training
    if len(paths) > 1:
        with pytest.raises(UserError) as caught:
            check_depth_order(model, paths[::-1], IMAGES, "teacher.taps")
        assert str(caught.value).startswith(f"teacher.taps: tap {paths[-1]!r} is named before ")
        assert str(caught.value).endswith(f"in this order: {', '.join(paths)}.")


def test_on_meta_tensors_nothing_is_computed() -> None:
    with torch.device("meta"):
        model = LikeResNet()
    images = zeros(model, IMAGES.shape[1:])
    check_depth_order(model, ("layer1.0", "layer2.0"), images, "student.taps")
    with pytest.raises(UserError, match=r"student\.taps: tap 'layer2\.0' is named before"):
        check_depth_order(model, ("layer2.0", "layer1.0"), images, "student.taps")


class EitherWay(nn.Module):
    """A network that runs its blocks in reverse order for black images."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(1, 1, 3), nn.Tanh()) for _ in range(3))
        self.head = nn.Linear(1, 2)
        nn.init.constant_(self.head.bias, -3.0)  # not mistaken for probabilities

    def forward(self, images: Tensor) -> Tensor:
        features = images
        for block in self.blocks if images.any() else reversed(self.blocks):
            features = block(features)
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


def test_the_order_is_that_of_real_images() -> None:
    for given in ((), ("blocks.0", "blocks.1")):
        found = TappedNetwork.of(EitherWay(), IMAGES, given, "teacher")
        assert found.paths == ("blocks.0", "blocks.1")


class WithOther(nn.Module):
    """A network whose first block another thread also runs, before the last block."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Conv2d(1, 1, 3) for _ in range(3)))

    def forward(self, images: Tensor) -> Tensor:
        features = self.blocks[1](self.blocks[0](images))
        other = Thread(target=self.blocks[0], args=(images,))
        other.start()
        other.join()
        logits: Tensor = self.blocks[2](features).mean(dim=(2, 3))
        return logits


def test_what_another_thread_runs_does_not_count() -> None:
    check_depth_order(WithOther(), ("blocks.0", "blocks.1"), IMAGES, "teacher.taps")


def test_networks_that_are_given_are_refused() -> None:
    with pytest.raises(UserError, match=r"teacher: tap 'layer2\.0' is named before 'layer1\.0'"):
        TappedNetwork.of(LikeResNet(), IMAGES, ("layer2.0", "layer1.0"), "teacher")


class Adding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x.add_(self.conv(x).relu())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_blocks_that_write_into_one_tensor_are_no_two_taps(device: str) -> None:
    """After a forward pass, all of them appear to give the output of the last one."""
    stem, activation = nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(inplace=True)
    network = nn.Sequential(stem, Adding(), Adding(), activation, nn.Flatten(), nn.Linear(144, 2))
    network, images = network.to(device), IMAGES.to(device)
    with pytest.raises(UserError, match=r"teacher: tap '2' gives the tensor that '1' gave, wr"):
        check_depth_order(network, ("1", "2"), images, "teacher")
    between = nn.Sequential(stem, activation, nn.Dropout()).to(device)  # dropout returns its input
    with pytest.raises(UserError, match=r"tap '2' gives the tensor that '0' gave.*inplace=True"):
        check_depth_order(between, ("0", "2"), images, "teacher")
    check_depth_order(network, ("2", "4"), images, "teacher")
    unchanged = nn.Sequential(stem, nn.Identity(), nn.Sequential(nn.Identity())).to(device)
    check_depth_order(unchanged, ("0", "1", "2"), images, "teacher")
