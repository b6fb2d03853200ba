import pytest
import torch

from krscale.errors import UserError
from krscale.models.capacity import count_flops
from krscale.models.mobilenet import mobilenet
from krscale.models.resnet import resnet


def expected_parameters(num_classes, in_channels, width, num_blocks, num_stages, expansion):
    total = 9 * in_channels * width + 2 * width
    channels = width
    for stage in range(num_stages):
        out = width * 2**stage
        for _ in range(num_blocks):
            hidden = expansion * channels
            total += channels * hidden + 2 * hidden + 9 * hidden + 2 * hidden
            total += hidden * out + 2 * out
            channels = out
    features = 4 * channels
    return total + channels * features + 2 * features + features * num_classes + num_classes


@pytest.mark.parametrize(
    ("num_classes", "in_channels", "width", "num_blocks", "num_stages", "expansion"),
    [(10, 3, 16, 2, 3, 6), (7, 1, 1, 1, 1, 1), (100, 3, 5, 3, 2, 4)],
)
def test_parameters_are_as_counted_by_hand(
    num_classes, in_channels, width, num_blocks, num_stages, expansion
):
    arguments = (num_classes, in_channels, width, num_blocks, num_stages, expansion)
    model = mobilenet(*arguments)
    assert sum(p.numel() for p in model.parameters()) == expected_parameters(*arguments)


def test_taps_and_resolutions():
    model = mobilenet(num_classes=5, in_channels=1, width=4)
    shapes = []
    for path in model.tap_paths:
        model.get_submodule(path).register_forward_hook(
            lambda _m, _i, output: shapes.append(tuple(output.shape[1:]))
        )
    assert model(torch.randn(2, 1, 16, 16)).shape == (2, 5)
    assert shapes == [(4, 16, 16)] * 2 + [(8, 8, 8)] * 2 + [(16, 4, 4)]
    assert model.stage_ends == (2, 4, 6)


def test_blocks_of_equal_shape_have_a_shortcut():
    first, second = mobilenet(5, 1, 4).stages[1]
    for block, expected in ((first, False), (second, True)):
        torch.nn.init.zeros_(block.narrow[1].weight)  # the residual then adds nothing
        features = torch.randn(2, block.widen[0].in_channels, 4, 4)
        assert torch.equal(block(features), features) == expected


def test_cheaper_than_a_resnet_of_the_same_width():
    assert count_flops(mobilenet(10, 3, 16), (3, 32, 32)) < count_flops(
        resnet(10, 3, 16), (3, 32, 32)
    )


def test_every_parameter_learns():
    model = mobilenet(10, 1, 3)
    torch.nn.functional.cross_entropy(
        model(torch.randn(8, 1, 8, 8)), torch.arange(8) % 10
    ).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_counts_are_checked():
    with pytest.raises(UserError, match=r"mobilenet: expansion must be .* \(got 0\)"):
        mobilenet(10, 1, 4, expansion=0)
