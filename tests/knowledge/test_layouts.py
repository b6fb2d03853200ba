import pytest
import torch
from torch import nn

from krscale.errors import UserError
from krscale.knowledge.taps import TappedModel, pool, settle_layouts


class Turn(nn.Module):
    """A convolution with permuted output axes; `size` refuses other sizes, as many ViTs do."""

    def __init__(self, axes, channels=4, size=0, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1, stride=stride)
        self.axes, self.size = axes, size

    def forward(self, images):
        if self.size:
            assert images.shape[-1] == self.size
        maps = self.conv(images)
        if len(self.axes) == 3:
            maps = maps.flatten(2)
        return maps.permute(self.axes)


class Hidden(Turn):
    """A block whose layers do not show its number of channels."""

    def forward(self, images):
        return super().forward(images).repeat_interleave(2, dim=self.axes.index(1))


class Net(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block, self.head = block, nn.LazyLinear(5)

    def forward(self, images):
        return self.head(self.block(images).flatten(1)[:, :16])


def settled(block, size=8, declared=""):
    model = Net(block)
    model(torch.zeros(1, 3, size, size))
    settle_layouts(model, ("block",), (3, size, size), declared, "teacher")
    return model


@pytest.mark.parametrize(
    "axes", [(0, 1, 2, 3), (0, 2, 3, 1), (0, 2, 1), (0, 1, 2)], ids=["BCHW", "BHWC", "BTC", "BCT"]
)
@pytest.mark.parametrize("fixed", [False, True], ids=["any size", "one size"])
@pytest.mark.parametrize("kind", [Turn, Hidden])
def test_means_are_over_positions(axes, fixed, kind):
    block = kind(axes, size=8 if fixed else 0)
    if kind is Hidden and fixed:
        with pytest.raises(UserError, match=r"teacher\.taps: 'block' gives \[2, .*tap_layout = "):
            settled(block)
        return
    images = torch.randn(2, 3, 8, 8)
    feature = TappedModel(settled(block), ("block",))(images).features[0]
    expected = block.conv(images).mean(dim=(2, 3))
    if kind is Hidden:
        expected = expected.repeat_interleave(2, dim=1)
    torch.testing.assert_close(pool(feature), expected)


def test_as_many_channels_as_rows_are_told_apart_by_a_second_size():
    block = Turn((0, 2, 3, 1), channels=8)
    images = torch.randn(2, 3, 8, 8)
    feature = TappedModel(settled(block), ("block",))(images).features[0]
    torch.testing.assert_close(feature, block.conv(images))


def test_as_many_channels_as_rows_at_one_size_are_asked_for():
    block = Turn((0, 2, 3, 1), channels=8, size=8)
    with pytest.raises(UserError, match="nothing tells which of these are channels"):
        settled(block)
    images = torch.randn(2, 3, 8, 8)
    for declare in ("setting", "block", "network"):
        model = Net(block)
        model(images)
        if declare != "setting":
            (block if declare == "block" else model).tap_layout = "channels_last"
        setting = "channels_last" if declare == "setting" else ""
        settle_layouts(model, ("block",), (3, 8, 8), setting, "teacher")
        feature = TappedModel(model, ("block",))(images).features[0]
        torch.testing.assert_close(feature, block.conv(images))
        if declare == "block":
            del block.tap_layout


def test_maps_of_one_pixel():
    block = Turn((0, 2, 3, 1), channels=16, stride=8)
    images = torch.randn(2, 3, 8, 8)
    feature = TappedModel(settled(block), ("block",))(images).features[0]
    torch.testing.assert_close(feature, block.conv(images))


class Tokens(nn.Module):
    """Patches of 16x16 images, `[B, T, C]` or with `first` `[B, C, T]`, and the given blocks."""

    def __init__(self, *blocks, channels=24, patch=4, first=False):
        super().__init__()
        self.embed, self.first = nn.Conv2d(3, channels, patch, patch), first
        self.blocks, self.head = nn.Sequential(*blocks), nn.LazyLinear(5)

    def forward(self, images):
        assert images.shape[-1] == 16
        maps = self.embed(images).flatten(2)
        return self.head(self.blocks(maps if self.first else maps.transpose(1, 2)).flatten(1))


class OverTokens(nn.Module):
    """A residual layer along the tokens of `[B, T, C]`."""

    def __init__(self, mix, turn=True):
        super().__init__()
        self.mix, self.turn = mix, turn

    def forward(self, tokens):
        if not self.turn:
            return tokens + self.mix(tokens)
        return tokens + self.mix(tokens.transpose(1, 2)).transpose(1, 2)


class Mixer(nn.Module):
    def __init__(self, tokens, channels):
        super().__init__()
        self.norm, self.other = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.tokens = OverTokens(nn.Linear(tokens, tokens))
        self.channels = nn.Linear(channels, channels)

    def forward(self, x):
        return self.channels(self.other(self.tokens(self.norm(x))))


def unfolded(block):
    """Return a network whose patches do not come from a layer."""

    class Unfolded(Tokens):
        def forward(self, images):
            assert images.shape[-1] == 16
            patches = nn.functional.unfold(images, 4, stride=4).transpose(1, 2)  # [B, 16, 48]
            return self.head(self.blocks(patches).flatten(1))

    return Unfolded(block)


def rows(*layers):
    """Return a block whose output `[B, 7, 4, 8]` (`[B, H, W, C]`) does not come from a layer."""

    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(layers)

        def forward(self, tokens):
            for layer in self.layers:
                layer(torch.zeros(len(tokens), 3, 5, 5, device=tokens.device))
            return tokens.flatten(1)[:, :224].reshape(-1, 7, 4, 8)

    return Rows()


UNDECIDED = {
    "mixes tokens": lambda: Tokens(OverTokens(nn.Linear(16, 16))),
    "mixes tokens alone": lambda: unfolded(OverTokens(nn.Linear(16, 16))),
    "mixes tokens with a convolution": lambda: Tokens(OverTokens(nn.Conv1d(16, 16, 1), turn=False)),
    "mixes tokens with a convolution alone": lambda: unfolded(
        OverTokens(nn.Conv1d(16, 16, 1), turn=False)
    ),
    "mixes both": lambda: Tokens(Mixer(16, 24)),
    "BCT by a linear layer": lambda: Tokens(nn.Linear(16, 10), first=True),
    "BCT by a linear layer and a norm": lambda: Tokens(
        nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16)), first=True
    ),
    "a stray convolution": lambda: Tokens(rows(nn.Conv2d(3, 7, 3))),
    "a stray linear layer": lambda: Tokens(rows(nn.Linear(5, 8))),
    "as many tokens as channels": lambda: Tokens(nn.LayerNorm(16), channels=16),
}
DECIDED = {
    "a norm": (lambda: nn.LayerNorm(24), False),
    "a linear layer after a norm": (
        lambda: nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 24)), False
    ),
    "as many hidden units as tokens": (
        lambda: nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 16), nn.Linear(16, 24)), False
    ),
    "attention": (lambda: nn.TransformerEncoderLayer(24, 2, 16, batch_first=True), False),
    "convolutions": (lambda: nn.Sequential(nn.Conv1d(24, 24, 3, padding=1), nn.ReLU()), True),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNDECIDED)
def test_what_does_not_prove_a_layout_is_asked_for(kind):
    model = UNDECIDED[kind]()
    images = torch.randn(2, 3, 16, 16)
    model(images)
    with pytest.raises(UserError, match="nothing tells which of these are channels"):
        settle_layouts(model, ("blocks.0",), (3, 16, 16))
    settle_layouts(model, ("blocks.0",), (3, 16, 16), "channels_last")


@pytest.mark.parametrize("kind", DECIDED)
def test_layers_that_prove_a_layout_at_one_size(kind):
    make, first = DECIDED[kind]
    model = Tokens(make(), first=first)
    images = torch.randn(2, 3, 16, 16)
    model(images)
    settle_layouts(model, ("blocks.0",), (3, 16, 16))
    feature = TappedModel(model, ("blocks.0",))(images).features[0]
    assert feature.shape == (2, 16, 24)
    assert pool(feature).shape == (2, 24)


def test_maps_that_are_pooled_at_one_size():
    block = nn.Sequential(Turn((0, 1, 2, 3), channels=6, size=8), nn.MaxPool2d(2))
    images = torch.randn(2, 3, 8, 8)
    feature = TappedModel(settled(block), ("block",))(images).features[0]
    assert feature.shape == (2, 6, 4, 4)


def test_settling_changes_nothing_else():
    model = settled(Turn((0, 2, 3, 1))).train()
    generator = torch.get_rng_state()
    settle_layouts(model, ("block",), (3, 8, 8))
    assert model.training
    assert torch.equal(torch.get_rng_state(), generator)
    assert "krscale_tap_layouts" not in "".join(model.state_dict())
    assert not any(module._forward_hooks for module in model.modules())


def test_blocks_that_return_a_tuple_of_one_tensor():
    class Block(nn.Module):
        def forward(self, images):
            return (images * 2, None)

    model = nn.Sequential(nn.Identity(), Block())
    model.append(nn.Identity())
    tapped = TappedModel(model, ("1",))
    images = torch.randn(1, 3, 2, 2)
    model[2].forward = lambda pair: pair[0].flatten(1)
    assert torch.equal(tapped(images).features[0], images * 2)
