import copy

import pytest
import torch

from krscale.errors import UserError
from krscale.models.resnet import resnet


def expected_parameters(num_classes, in_channels, width, num_blocks, num_stages):
    """Counted by hand: 3x3 convolutions, 2 numbers per norm channel, 1x1 shortcuts."""
    total = 9 * in_channels * width + 2 * width
    channels = width
    for stage in range(num_stages):
        out = width * 2**stage
        for _ in range(num_blocks):
            total += 9 * channels * out + 9 * out * out + 4 * out
            if channels != out:
                total += channels * out + 2 * out
            channels = out
    return total + channels * num_classes + num_classes


@pytest.mark.parametrize(
    ("num_classes", "in_channels", "width", "num_blocks", "num_stages"),
    [(10, 1, 1, 1, 3), (10, 1, 32, 2, 3), (100, 3, 5, 3, 2), (7, 2, 4, 1, 1)],
)
def test_parameters_are_as_counted_by_hand(num_classes, in_channels, width, num_blocks, num_stages):
    model = resnet(num_classes, in_channels, width, num_blocks, num_stages)
    assert sum(p.numel() for p in model.parameters()) == expected_parameters(
        num_classes, in_channels, width, num_blocks, num_stages
    )


def test_classic_resnet20_has_its_published_size():
    # He et al. report 0.27M for n = 3 (identity shortcuts); projections add 2752 here.
    model = resnet(10, 3, 16, num_blocks=3)
    assert 0.26e6 < sum(p.numel() for p in model.parameters()) < 0.28e6


def test_a_stem_of_its_own_width_gives_the_published_resnet8x4():
    # By hand: stem 3 -> 32, then three blocks 32 -> 64 -> 128 -> 256, each with a projection.
    blocks = sum(
        9 * a * b + 9 * b * b + a * b + 6 * b for a, b in ((32, 64), (64, 128), (128, 256))
    )
    expected = 9 * 3 * 32 + 2 * 32 + blocks + 256 * 100 + 100
    model = resnet(100, 3, 64, num_blocks=1, stem_channels=32)
    assert sum(p.numel() for p in model.parameters()) == expected == 1_233_540
    with pytest.raises(UserError, match="stem_channels"):
        resnet(100, 3, 64, stem_channels=0)


@pytest.mark.parametrize("size", [8, 16, 28, 32, 64])
def test_logits_and_resolution_of_every_stage(size):
    model = resnet(num_classes=11, in_channels=2, width=4, num_blocks=1)
    shapes = []
    for stage in model.stages:
        stage.register_forward_hook(lambda _m, _i, output: shapes.append(tuple(output.shape)))
    assert model(torch.randn(3, 2, size, size)).shape == (3, 11)
    half, quarter = -(-size // 2), -(-size // 4)
    assert shapes == [(3, 4, size, size), (3, 8, half, half), (3, 16, quarter, quarter)]


@pytest.mark.parametrize(
    ("num_blocks", "num_stages", "ends"),
    [(2, 3, (2, 4, 6)), (1, 3, (1, 2, 3)), (3, 2, (3, 6)), (1, 1, (1,))],
)
def test_taps_are_all_blocks_but_the_last(num_blocks, num_stages, ends):
    model = resnet(10, 1, 2, num_blocks, num_stages)
    blocks = [name for name, m in model.named_modules() if type(m).__name__ == "BasicBlock"]
    assert list(model.tap_paths) == blocks[:-1]
    assert model.stage_ends == ends
    assert ends[-1] == len(model.tap_paths) + 1


def test_same_seed_same_weights_and_every_parameter_learns():
    torch.manual_seed(0)
    first = resnet(10, 1, 3)
    torch.manual_seed(0)
    second = resnet(10, 1, 3)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    torch.nn.functional.cross_entropy(
        first(torch.randn(8, 1, 8, 8)), torch.arange(8) % 10
    ).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in first.parameters())


def test_copies_keep_the_taps():
    model = resnet(10, 1, 2)
    assert copy.deepcopy(model).tap_paths == model.tap_paths


@pytest.mark.parametrize("wrong", [{"num_blocks": 0}, {"num_stages": "3"}, {"width": 1.5}])
def test_counts_are_checked(wrong):
    arguments = {"num_classes": 10, "in_channels": 1, "width": 4, **wrong}
    (name, value), *_ = wrong.items()
    with pytest.raises(UserError, match=rf"resnet: {name} must be .* \(got {value!r}\)"):
        resnet(**arguments)
