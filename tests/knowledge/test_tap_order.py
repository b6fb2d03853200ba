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
    check_depth_order(network, ("2", "5"), images, "teacher")
    with pytest.raises(UserError, match=r"tap .4. gives the tensor that .2. gave"):  # flat
        check_depth_order(network, ("2", "4"), images, "teacher")
    unchanged = nn.Sequential(stem, nn.Identity(), nn.Sequential(nn.Identity())).to(device)
    check_depth_order(unchanged, ("0", "1", "2"), images, "teacher")


class Form(nn.Module):
    """Gives the tensor that it is given in another form, after writing into it or as it is."""

    def __init__(self, form: str, write: bool) -> None:
        super().__init__()
        self.form, self.write = form, write

    def forward(self, x: Tensor) -> object:
        x = x.mul_(2.0) if self.write else x
        view = x.flatten(2).transpose(1, 2)
        return {
            "view": view,
            "tuple": (x, None),
            "list": [x],
            "mapping": {"last_hidden_state": view},
        }[self.form]


class Formed(nn.Module):
    """A convolution, what gives it in another form, and a classifier of it."""

    def __init__(self, form: str, write: bool) -> None:
        super().__init__()
        self.stem, self.form = nn.Conv2d(1, 3, 3, padding=1), Form(form, write)
        self.head = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        given = self.form(self.stem(images))
        found = given["last_hidden_state"] if isinstance(given, dict) else given
        found = found[0] if isinstance(found, tuple | list) else found
        tokens = found.flatten(2).transpose(1, 2) if found.ndim == 4 else found
        logits: Tensor = self.head(tokens.mean(dim=1))
        return logits


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("form", ["view", "tuple", "list", "mapping"])
def test_a_tensor_is_the_same_in_another_form(form: str, device: str) -> None:
    images = IMAGES.to(device)
    check_depth_order(Formed(form, False).to(device), ("stem", "form"), images, "student")
    with pytest.raises(UserError, match=r"student: tap 'form' gives the tensor that 'stem' gave"):
        check_depth_order(Formed(form, True).to(device), ("stem", "form"), images, "student")
    check_depth_order(Formed(form, True).to(device), ("form",), images, "student")


class Later(nn.Module):
    """A network without any module for what it does in place: an activation, or a sum."""

    def __init__(self, form: str, sums: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), Form(form, False))
        self.deeper, self.head = nn.Linear(3, 3), nn.Linear(3, 2)
        self.sums = sums

    def forward(self, images: Tensor) -> Tensor:
        given = self.stem(images)
        found = given["last_hidden_state"] if isinstance(given, dict) else given
        found = found[0].flatten(2).transpose(1, 2) if isinstance(found, tuple | list) else found
        if self.sums:
            found += self.deeper(found.relu())
        else:
            found = self.deeper(found.relu_())
        logits: Tensor = self.head(found.mean(dim=1))
        return logits


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("form", ["view", "tuple", "list", "mapping"])
def test_what_a_deeper_layer_adds_to_a_tap_is_not_read_there(form: str, device: str) -> None:
    """Only an activation that follows directly may be in place: the tap stays at its depth."""
    images = IMAGES.to(device)
    check_depth_order(Later(form, sums=False).to(device), ("stem",), images, "teacher")
    with pytest.raises(UserError, match=r"^teacher: tap 'stem': what this block gives is written"):
        check_depth_order(Later(form, sums=True).to(device), ("stem",), images, "teacher")


class Scaled(nn.Module):
    """A block with a weight of its own beside its layers, which ends with a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, 1, 1))
        self.conv, self.norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.conv(x) * self.scale)
        return normed


def test_a_module_around_a_tap_is_no_later_layer() -> None:
    network = nn.Sequential(Scaled(), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(300, 2))
    check_depth_order(network, ("0.conv", "0.norm"), IMAGES, "student")
    check_depth_order(network, ("0",), IMAGES, "student")
