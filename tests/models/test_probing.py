import copy
from functools import partial

import pytest
import torch
from odd_networks import Net
from torch import nn
from torch.nn.utils import prune

from krscale.errors import UserError
from krscale.models.capacity import count_flops, nearest_width, num_parameters, sizes_by_width
from krscale.models.outputs import read_logits
from krscale.models.probing import (
    build_for_shapes,
    check_network,
    check_rebuilt,
    check_weights_are_finite,
)

SHAPE = (1, 8, 8)


def build(form, key=""):
    def make():
        model = Net(5, form=form)
        read_logits(model, key, "student")
        return model

    return make


@pytest.mark.parametrize(
    ("form", "key"),
    [("", ""), ("dict", ""), ("dataclass", ""), ("pair", "1"), ("auxiliary", "0"),
     ("positions", ""), ("looks at values", "")],
)  # fmt: skip
def test_networks_that_give_logits_pass(form, key):
    check_network(build_for_shapes(build(form, key), SHAPE), 5, SHAPE, "student")


@pytest.mark.parametrize(
    ("form", "key", "message"),
    [
        ("pair", "", r"student\.output_key: the network returns '0' \[2, 8, 8, 8\], '1' \[2, 5\]"),
        ("pair", "2", r"no tensor '2'"),
        ("auxiliary", "", r"student\.output_key: .*'0' \[2, 5\], '1' \[2, 5\]"),
        ("three", "", r"gives 3 logits, the data have 5 classes"),
        ("text", "", r"returns str"),
        ("maps", "", r"gives a tensor of shape \[2, 8, 8, 8\].*wanted: logits \[2, 5\]"),
        ("crash", "", r"does not run on images of shape \[1, 8, 8\] in eval mode: RuntimeError"),
        ("crash", "", r"odd_networks\.py, line \d+"),
        ("NaN", "", r"NaN or infinity"),
        ("", "logits", r"student\.output_key: 'logits' is set, but the network returns a single"),
    ],
)
def test_networks_that_do_not_are_refused(form, key, message):
    model = build(form, key)()
    with pytest.raises(UserError, match=message):
        check_network(model, 5, SHAPE, "student")


def test_networks_whose_weights_a_hook_computes_pass():
    model = Net(5)
    layer = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    prune.l1_unstructured(layer, "weight", 0.5)
    check_network(model, 5, SHAPE, "student")
    expected = count_flops(Net(5), SHAPE)
    assert count_flops(model, SHAPE) == expected


def test_checking_changes_nothing():
    model = build("auxiliary", "0")()
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    check_network(model, 5, SHAPE, "student")
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_network_that_looks_at_values_is_measured_where_it_can_run():
    assert build_for_shapes(build(""), SHAPE).head.weight.is_meta
    model = build_for_shapes(build("looks at values"), SHAPE)
    assert not model.head.weight.is_meta
    assert count_flops(model, SHAPE) == count_flops(build("")(), SHAPE)
    target = num_parameters(Net(5, width=12))
    assert (
        nearest_width(
            sizes_by_width(lambda width: Net(5, width=width, form="looks at values")), target
        )
        == 12
    )


def test_weights_that_are_not_finite_are_named():
    model = nn.Linear(2, 2)
    check_weights_are_finite(model, "teacher")
    nn.init.constant_(model.bias, float("inf"))
    with pytest.raises(UserError, match="teacher: the weights hold NaN or infinity: bias"):
        check_weights_are_finite(model, "teacher")


def masked(values: list[float]) -> nn.Module:
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.tensor(values))
    return model


def test_masks_of_attention_may_hold_minus_infinity():
    check_weights_are_finite(masked([0.0, -torch.inf]), "teacher")
    for broken in ([torch.inf], [torch.nan, -torch.inf]):
        with pytest.raises(UserError, match="teacher: the weights hold NaN or infinity: mask"):
            check_weights_are_finite(masked(broken), "teacher")
    model = masked([0.0])
    nn.init.constant_(model.bias, -torch.inf)
    with pytest.raises(UserError, match="teacher: the weights hold NaN or infinity: bias"):
        check_weights_are_finite(model, "teacher")


def test_a_state_that_is_not_of_tensors_alone_is_refused():
    """For example of quantised networks: a file of tensors cannot hold their packed weights."""

    class Packed(nn.Linear):
        def get_extra_state(self):
            return {"scale": 0.5}

    with pytest.raises(
        UserError, match=r"teacher: the state .* not tensors, .*: 0\._extra_state\. krscale"
    ):
        check_weights_are_finite(nn.Sequential(Packed(2, 2)), "teacher")


class Shuffled(nn.Module):
    """A head of zeros behind an order of the pixels that is drawn once."""

    def __init__(self, kept: str) -> None:
        super().__init__()
        order = torch.randperm(64)
        if kept == "attribute":
            self.order = order
        else:
            self.register_buffer("order", order, persistent=kept == "saved buffer")
        self.head = nn.Linear(64, 5)
        nn.init.zeros_(self.head.weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.flatten(1)[:, self.order])


class Restored(Shuffled):
    """The same, with an order that is saved as extra state."""

    def get_extra_state(self) -> torch.Tensor:
        return self.order

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.order = state


def tied() -> nn.Module:
    layer = nn.Linear(64, 64)
    return nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer, nn.Linear(64, 5))


@pytest.mark.parametrize("kept", ["attribute", "other buffer"])
def test_what_is_drawn_and_not_saved_is_refused(kept):
    with pytest.raises(UserError, match="student: the network is built with something random"):
        check_rebuilt(Shuffled(kept), Shuffled(kept), SHAPE, "student")


@pytest.mark.parametrize(
    "make",
    [
        partial(Shuffled, "saved buffer"),
        partial(Restored, "attribute"),
        tied,
        partial(Net, 5),
        partial(Net, 5, form="dropout"),
    ],
)
def test_what_is_saved_whole_passes_and_is_not_changed(make):
    networks = make(), make()
    before = [copy.deepcopy(network.state_dict()) for network in networks]
    check_rebuilt(*networks, SHAPE, "student")
    for network, state in zip(networks, before, strict=True):
        found = network.state_dict()
        assert all(torch.equal(found[name], value) for name, value in state.items())
        assert network.training
