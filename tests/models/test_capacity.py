import math

import pytest
import torch
from torch import nn

from krscale.errors import UserError
from krscale.models.capacity import (
    count_flops,
    latency_ms,
    nearest_width,
    num_bytes,
    num_parameters,
    on_meta,
    sizes_by_width,
)
from krscale.models.resnet import resnet


def test_parameters_and_bytes_by_hand():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert num_parameters(model) == 16 + 8
    # fp32 parameters, running mean and variance, and an int64 counter.
    assert num_bytes(model) == 4 * (24 + 8) + 8
    assert num_bytes(model.bfloat16()) == 2 * (24 + 8) + 8


def test_shared_parameters_count_once():
    first = nn.Linear(5, 5, bias=False)
    model = nn.Sequential(first, nn.ReLU(), first)
    assert num_parameters(model) == 25
    assert num_bytes(model) == 100


def test_flops_of_a_convolution_and_a_linear_layer_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 64, 7, bias=False),
    )
    convolution = 2 * 64 * 5 * 3 * 9  # 2 FLOPs for each multiply-add
    assert count_flops(model, (3, 8, 8)) == convolution + 2 * 320 * 7


def attention(network, x):
    return network.layer(x, x, x, need_weights=False)[0]


LAYERS = {  # for 16 tokens of 8 numbers: multiply-adds by hand
    "encoder": (
        lambda: nn.TransformerEncoderLayer(8, 2, 12, batch_first=True),
        lambda network, x: network.layer(x),
        16 * 8 * (24 + 8) + 2 * 16 * 16 * 8 + 2 * 16 * 8 * 12,
    ),
    "attention": (
        lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        attention,
        16 * 8 * (24 + 8) + 2 * 16 * 16 * 8,
    ),
    "sdpa": (
        nn.Identity,
        lambda network, x: nn.functional.scaled_dot_product_attention(x, x, x),
        2 * 16 * 16 * 8,
    ),
    **{
        kind.__name__: (
            lambda kind=kind: kind(8, 5, batch_first=True),
            lambda network, x: network.layer(x)[0],
            gates * 16 * (8 + 5) * 5,
        )
        for kind, gates in ((nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4))
    },
    "bilinear": (
        lambda: nn.Bilinear(8, 8, 3),
        lambda network, x: network.layer(x, x),
        16 * (3 * 8 * 8 + 3 * 8),
    ),
    "vector": (nn.Identity, lambda network, x: x[0] @ x[0, 0], 16 * 8),
    "dot": (nn.Identity, lambda network, x: x[0, 0] @ x[0, 1], 8),
    "addmv": (nn.Identity, lambda network, x: torch.addmv(x[0, :, 0], x[0], x[0, 0]), 16 * 8),
    "addbmm": (nn.Identity, lambda network, x: torch.addbmm(x[0], x, x[:, :8]), 16 * 8 * 8),
}


@pytest.mark.parametrize("looks", [False, True], ids=["meta", "real"])
@pytest.mark.parametrize("layer", LAYERS)
def test_products_count_alike_wherever_the_network_runs(layer, looks):
    build, call, multiply_adds = LAYERS[layer]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.device = build(), nn.Parameter(torch.zeros(1))

        def forward(self, image):
            if looks:
                image.sum().item()  # no meta tensor has a value
            return call(self, image[:, 0])

    flags = torch.backends
    before = (flags.mha.get_fastpath_enabled(), flags.mkldnn.enabled, flags.cudnn.enabled)
    assert count_flops(Net(), (1, 16, 8)) == 2 * multiply_adds
    assert (flags.mha.get_fastpath_enabled(), flags.mkldnn.enabled, flags.cudnn.enabled) == before


def test_flops_leave_the_network_as_it_is():
    model = resnet(10, 1, 2).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count_flops(model, (1, 8, 8))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_flops_of_a_resnet_grow_with_the_image_area():
    model = resnet(10, 1, 4)
    classifier = 2 * 16 * 10
    small, large = (count_flops(model, (1, size, size)) - classifier for size in (8, 16))
    assert large == 4 * small


def test_latency_is_positive_and_restores_modes():
    model = resnet(10, 1, 2).train()
    model.stages.eval()
    threads = torch.get_num_threads()
    before = model.stem[1].running_mean.clone()
    assert 0 < latency_ms(model, (1, 8, 8)) < 1000
    assert model.training
    assert not model.stages.training
    assert torch.equal(model.stem[1].running_mean, before)
    assert torch.get_num_threads() == threads


def test_latency_orders_small_and_large():
    small = latency_ms(nn.Linear(8, 8), (1, 1, 8))
    large = latency_ms(nn.Linear(2048, 2048), (1, 1, 2048))
    assert small < large


def narrow(width):
    return resnet(10, 1, width, num_blocks=1)


@pytest.fixture(scope="module")
def sizes():
    """Numbers of parameters by width."""
    with torch.device("meta"):
        return {width: num_parameters(narrow(width)) for width in range(1, 140)}


@pytest.mark.parametrize("target", [1, 300, 2_000, 40_000, 700_000, 3_000_001])
def test_width_of_agrees_with_trying_every_width(target, sizes):
    best = min(sizes, key=lambda width: abs(math.log(sizes[width] / target)))
    assert nearest_width(sizes_by_width(narrow), target) == best


@pytest.mark.parametrize("target", [300, 40_000, 120_000, 700_000])
def test_width_of_tries_multiples_alone_where_asked(target, sizes):
    best = min(range(8, 140, 8), key=lambda width: abs(math.log(sizes[width] / target)))
    assert nearest_width(sizes_by_width(narrow), target, multiple=8) == best


def test_several_targets_build_each_width_once():
    widths = []

    def build(width):
        widths.append(width)
        return nn.Linear(width, 1)

    size_at = sizes_by_width(build)
    assert [nearest_width(size_at, target) for target in (10, 20, 40)] == [9, 19, 39]
    assert len(widths) == len(set(widths))


def test_only_numbers_without_a_place_are_left_out_on_meta():
    class Net(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.layer = nn.Linear(width, 2)
            self.real = torch.zeros(100, device="cpu").normal_()

    found = on_meta(Net, 3)
    assert found.layer.weight.is_meta
    assert 0.5 < float(found.real.std()) < 2.0


def test_width_of_needs_no_memory():
    width = nearest_width(sizes_by_width(lambda width: resnet(10, 3, width)), 1e11)
    with torch.device("meta"):
        assert num_parameters(resnet(10, 3, width)) == pytest.approx(1e11, rel=0.01)


def test_width_of_refuses_a_network_without_a_dial():
    with pytest.raises(UserError, match=r"width 1 has 10 .* Does the network use its width"):
        nearest_width(sizes_by_width(lambda width: nn.Linear(4, 2)), 1000)


@pytest.mark.parametrize("target", [0, -3, math.nan, math.inf])
def test_width_of_refuses_targets_that_are_no_size(target):
    with pytest.raises(UserError, match="must be positive"):
        nearest_width(sizes_by_width(lambda width: nn.Linear(width, 1)), target)
