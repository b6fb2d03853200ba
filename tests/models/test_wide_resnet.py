import pytest
import torch

from krscale.errors import UserError
from krscale.models.wide_resnet import wide_resnet


def expected_parameters(num_classes, in_channels, width, depth):
    stem = min(16, width)
    total = 9 * in_channels * stem
    channels = stem
    for stage_width in (width, 2 * width, 4 * width):
        for _ in range((depth - 4) // 6):
            total += 2 * channels + 9 * channels * stage_width
            total += 2 * stage_width + 9 * stage_width * stage_width
            if channels != stage_width:  # only a first stage as wide as the stem has no projection
                total += channels * stage_width
            channels = stage_width
    return total + 2 * channels + channels * num_classes + num_classes


@pytest.mark.parametrize(
    ("num_classes", "in_channels", "width", "depth"),
    [(10, 3, 32, 40), (100, 3, 32, 16), (7, 1, 1, 10), (10, 1, 16, 16), (10, 2, 17, 22)],
)
def test_parameters_are_as_counted_by_hand(num_classes, in_channels, width, depth):
    model = wide_resnet(num_classes, in_channels, width, depth)
    expected = expected_parameters(num_classes, in_channels, width, depth)
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize(
    ("depth", "factor", "millions"), [(40, 2, 2.2), (16, 4, 2.7), (40, 1, 0.6), (16, 8, 11.0)]
)
def test_published_networks_have_their_published_size(depth, factor, millions):
    with torch.device("meta"):
        model = wide_resnet(10, 3, 16 * factor, depth)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    assert size == pytest.approx(millions, abs=0.06)


def test_taps_and_resolutions():
    model = wide_resnet(num_classes=5, in_channels=1, width=4, depth=16)
    shapes = []
    for path in model.tap_paths:
        model.get_submodule(path).register_forward_hook(
            lambda _m, _i, output: shapes.append(tuple(output.shape[1:]))
        )
    assert model(torch.randn(2, 1, 16, 16)).shape == (2, 5)
    assert shapes == [(4, 16, 16)] * 2 + [(8, 8, 8)] * 2 + [(16, 4, 4)]
    assert model.stage_ends == (2, 4, 6)


def test_every_parameter_learns():
    model = wide_resnet(10, 1, 3, depth=10)
    torch.nn.functional.cross_entropy(
        model(torch.randn(8, 1, 8, 8)), torch.arange(8) % 10
    ).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("depth", [4, 12, 17])
def test_depths_that_no_network_has(depth):
    with pytest.raises(UserError, match=rf"depth must be 4 more .* \(got {depth}\)"):
        wide_resnet(10, 3, 16, depth)
