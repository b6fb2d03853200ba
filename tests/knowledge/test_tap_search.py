"""Taps are found at blocks that all data pass through, in any kind of network."""

from __future__ import annotations

import pytest
import torch
from foreign_networks import (
    ChannelsLast,
    LikeResNet,
    LikeVGG,
    LikeViT,
    Perceptron,
    Residual,
    Stages,
    WithDict,
    WithObject,
)
from torch import Tensor, nn

from krscale.errors import UserError
from krscale.knowledge.tap_search import MAX_TAPS, FoundTaps, find_taps
from krscale.models import build_model
from krscale.models.tapped import TappedNetwork, logits_of

BLOCKS = ("layer1.0", "layer1.1", "layer2.0")


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))


def tapped(network: nn.Module, images: Tensor, *paths: str) -> TappedNetwork:
    return TappedNetwork.of(network, images, paths, "teacher")


@pytest.mark.parametrize(
    ("network", "paths", "stage_ends"),
    [
        (LikeResNet, BLOCKS, (2, 4)),
        (WithDict, BLOCKS, (2, 4)),
        (WithObject, BLOCKS, (2, 4)),
        (LikeViT, tuple(f"blocks.{i}" for i in range(5)), (2, 3, 5, 6)),
        (LikeVGG, ("features.2", "features.5"), (1, 3)),
        (Stages, ("first", "second"), (1, 3)),
        (Perceptron, ("2", "4"), (1, 3)),
        (ChannelsLast, ("layers.0", "layers.1"), (1, 3)),
    ],
)
def test_found(
    network: type[nn.Module], paths: tuple[str, ...], stage_ends: tuple[int, ...], images: Tensor
) -> None:
    torch.manual_seed(0)
    model = network()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found = tapped(model, images)
    assert found.paths == paths
    assert found.stage_ends == stage_ends
    assert found.num_classes == 3
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    outputs = found(images)
    assert [tuple(f.shape[1:]) for f in outputs.features] == list(found.shapes)
    assert torch.equal(outputs.logits, logits_of(model(images)))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_a_module_keeps_the_mode_it_had(images: Tensor) -> None:
    model = LikeVGG()
    frozen = model.features[1].eval()
    mean = frozen.running_mean.clone()
    tapped(model, images)
    assert model.training
    assert not frozen.training
    assert torch.equal(frozen.running_mean, mean)


@pytest.mark.parametrize("size", [12, 16])
def test_channels_last_maps_are_turned(size: int) -> None:
    images = torch.randn(4, 1, size, size, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    network = ChannelsLast()
    found = tapped(network, images, "stem", "layers.0", "layers.1")
    assert [shape[0] for shape in found.shapes] == [6, 6, 8]  # at 12, also 6 rows and columns
    assert tapped(network, images, "layers.2").shapes[0][0] == 8
    features = found(images).features
    assert [feature.shape[1] for feature in features] == [6, 6, 8], "others' layouts stay known"


class OneSize(nn.Module):
    """Resizes every image to one size, at which the maps are as wide as they have channels."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(nn.functional.interpolate(images, size=12))
        return logits


def test_a_layout_that_cannot_be_told_is_asked_for(images: Tensor) -> None:
    torch.manual_seed(0)
    network = OneSize(ChannelsLast())
    with pytest.raises(
        UserError, match=r"teacher\.taps: 'network\.layers\.0' .*teacher\.tap_layout"
    ):
        tapped(network, images)
    network.tap_layout = "channels_last"  # type: ignore[assignment]
    feature = tapped(network, images)(images).features[0]
    expected = network.network.layers[0](network.network.stem(images).movedim(1, -1))
    torch.testing.assert_close(feature, expected.movedim(-1, 1))


def test_own_taps_come_first_and_given_ones_before_them(images: Tensor) -> None:
    network = build_model("resnet", num_classes=3, in_channels=1, width=2, options={})
    own = tapped(network, images)
    assert own.paths == network.tap_paths
    assert own.stage_ends == network.stage_ends
    assert tapped(network, images, "stages.0").paths == ("stages.0",)
    with pytest.raises(UserError, match=r"teacher: unknown tap 'stages\.9'"):
        tapped(network, images, "stages.9")


def test_wrappers_are_looked_through(images: Tensor) -> None:
    torch.manual_seed(0)
    network = LikeResNet()
    compiled = torch.compile(network, backend="eager")
    assert tapped(compiled, images).paths == BLOCKS


def test_many_blocks_are_thinned_out(images: Tensor) -> None:
    torch.manual_seed(0)
    found = find_taps(LikeViT(40), images, logits_of)
    assert len(found.paths) == MAX_TAPS
    numbers = [int(path.partition(".")[2]) for path in found.paths]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 38


class Adding(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(size, size, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x.add_(self.conv(x).relu())


class InPlace(nn.Module):
    """The blocks of a stage write into one tensor, which keeps only the last block's output."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3), Adding(4), Adding(4))
        self.second = nn.Sequential(nn.Conv2d(4, 6, 3), Adding(6), Adding(6))
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.second(self.first(x)).mean(dim=(2, 3)))
        return logits


def test_of_blocks_that_write_into_one_tensor_the_last_is_found(images: Tensor) -> None:
    torch.manual_seed(0)
    network = InPlace()
    found = tapped(network, images)
    assert found.paths == ("first.2", "second.2")
    with torch.no_grad():
        torch.testing.assert_close(found(images).features[0], network.first(images))


class Inferring(nn.Module):
    """A trained network that always runs in torch's inference mode, which counts no writes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits


def test_blocks_that_write_in_inference_mode(images: Tensor) -> None:
    torch.manual_seed(0)
    network = Inferring(InPlace())
    assert tapped(network, images).paths == ("network.first.2", "network.second.2")
    with pytest.raises(UserError, match=r"'network\.first\.2' gives the tensor that 'network\.f"):
        tapped(network, images, "network.first.1", "network.first.2")
    with pytest.raises(UserError, match=r"'network\.first\.0': .* is written into after later"):
        tapped(network, images, "network.first.0")
    paths = tapped(Inferring(LikeResNet()), images).paths
    assert paths == tuple(f"network.{path}" for path in BLOCKS)


class ToTokens(nn.Module):
    """Writes into the map that it is given, and gives a view of it."""

    def __init__(self) -> None:
        super().__init__()
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x).flatten(2).transpose(1, 2)


class OfTokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)), ToTokens()
        self.third, self.fc = nn.Sequential(nn.Linear(4, 5), nn.Tanh()), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.third(self.second(self.first(x))).mean(dim=1))
        return logits


def test_a_map_of_which_a_later_block_gives_a_view_is_found_there(images: Tensor) -> None:
    torch.manual_seed(0)
    network = OfTokens()
    found = tapped(network, images)
    assert found.paths == ("second", "third")
    with torch.no_grad():
        tokens = network.second(network.first(images))
        torch.testing.assert_close(found(images).features[0], tokens)


@pytest.mark.parametrize("num_taps", [1, 2, 3, 4, 12])
def test_stages_of_one_shape_rise_to_the_classifier(num_taps: int) -> None:
    found = FoundTaps(tuple(map(str, range(num_taps))), ((4, 2),) * num_taps)
    ends = found.stage_ends
    assert ends[-1] == num_taps + 1
    assert list(ends) == sorted(set(ends))
    assert len(ends) == min(4, num_taps + 1)


def test_nothing_to_tap(images: Tensor) -> None:
    with pytest.raises(UserError, match=r"student: no block was found.*It has 0, 1\."):
        TappedNetwork.of(nn.Sequential(nn.Flatten(), nn.Linear(144, 3)), images, (), "student")


def test_images_that_say_nothing(images: Tensor) -> None:
    with pytest.raises(UserError, match="two images that differ"):
        tapped(LikeResNet(), images[:1].expand(2, -1, -1, -1))

    class Dead(LikeResNet):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x), 3) * super().forward(0 * x)

    with pytest.raises(UserError, match="two different images the same outputs"):
        tapped(Dead(), images)


@pytest.mark.parametrize("network", [LikeResNet, LikeViT, LikeVGG])
def test_a_fresh_student_that_says_nothing_yet(network: type[nn.Module], images: Tensor) -> None:
    """Classifiers and the ends of residual branches often start at zero."""
    torch.manual_seed(0)
    expected = tapped(network(), images)
    fresh = network()
    nn.init.zeros_([m for m in fresh.modules() if isinstance(m, nn.Linear)][-1].weight)
    for block in fresh.modules():
        if isinstance(block, Residual):
            nn.init.zeros_(block.body[-1].weight)
    found = tapped(fresh, images)
    assert (found.paths, found.stage_ends) == (expected.paths, expected.stage_ends)


def test_logits_that_are_not_there(images: Tensor) -> None:
    class Odd(LikeResNet):
        def forward(self, x: Tensor) -> object:
            return self.odd(super().forward(x))

    network = Odd()
    for odd, said in [
        (
            lambda logits: {"scores": logits, "more": logits},
            r"returns dict \(scores, more\), and nothing",
        ),
        (lambda logits: (logits, logits), "returns tuple"),
        (lambda logits: "yes", r"returns str \(no tensor\)"),
        (lambda logits: logits[:, :, None].repeat(1, 1, 2), r"\[2, 3, 2\], and not \[B, K\]"),
    ]:
        network.odd = odd
        with pytest.raises(UserError, match=said):
            tapped(network, images)
    network.odd = lambda logits: logits[:, :, None, None]
    assert tapped(network, images).num_classes == 3
