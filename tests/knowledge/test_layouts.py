import pytest
import torch
from torch import nn

from krscale.errors import UserError
from krscale.knowledge.taps import TappedModel, pool, settle_layouts


class Turn(nn.Module):
    """A convolution whose output is turned; `strict` refuses other sizes, as many ViTs do."""

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
    """Its layers do not tell its channels."""

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


def test_settling_changes_nothing_else():
    model = settled(Turn((0, 2, 3, 1))).train()
    generator = torch.get_rng_state()
    settle_layouts(model, ("block",), (3, 8, 8))
    assert model.training
    assert torch.equal(torch.get_rng_state(), generator)
    assert "krscale_tap_layouts" not in "".join(model.state_dict())


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
