import copy
import pickle
from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from krscale.errors import UserError
from krscale.models.outputs import (
    find_logits,
    read_logits,
    refuse_bounded,
    refuse_probabilities,
    unwrap_all,
)

LOGITS, OTHER = torch.ones(2, 3), torch.zeros(2, 5)
Named = namedtuple("Named", ["aux", "logits"])


@dataclass
class Output:
    loss: torch.Tensor | None
    logits: torch.Tensor
    hidden: torch.Tensor


class Computing:
    """Has a property `logits`, and no entry of that name in its `__dict__`."""

    def __init__(self):
        self.hidden, self.other = OTHER, OTHER

    @property
    def logits(self):
        return LOGITS


class Slotted:
    __slots__ = ("hidden", "logits")

    def __init__(self):
        self.hidden, self.logits = OTHER, LOGITS


class Wrapping(nn.Module):
    """A classifier whose output is a given function of its logits."""

    def __init__(self, form):
        super().__init__()
        self.head, self.form = nn.Linear(4, 3), form

    def forward(self, images):
        return self.form(self.head(images.flatten(1)), self.training)


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        {"logits": LOGITS, "hidden": OTHER},
        {"scores": LOGITS, "loss": None},
        Output(None, LOGITS, OTHER),
        Named(OTHER, LOGITS),
        (LOGITS,),
        [None, LOGITS],
        SimpleNamespace(logits=LOGITS, hidden=OTHER),
        SimpleNamespace(scores=LOGITS, loss=None),
        Computing(),
        Slotted(),
    ],
)
def test_logits_are_found_where_there_is_one_choice(output):
    assert find_logits(output) is LOGITS


@pytest.mark.parametrize(
    ("output", "key"),
    [
        ({"main": LOGITS, "logits": OTHER}, "main"),
        ((OTHER, LOGITS), "1"),
        (Output(None, OTHER, LOGITS), "hidden"),
        (SimpleNamespace(main=LOGITS, logits=OTHER), "main"),
        (LOGITS, "0"),
    ],
)
def test_the_key_decides(output, key):
    assert find_logits(output, key) is LOGITS


@pytest.mark.parametrize(
    ("output", "key", "parts"),
    [
        ((LOGITS, OTHER), "", ["teacher.output_key", "'0' [2, 3]", "'1' [2, 5]"]),
        ({"logit": LOGITS, "x": OTHER}, "logits", ["'logits'", "Did you mean 'logit'?"]),
        ({"a": 1}, "", ["no tensor at all"]),
        (SimpleNamespace(a=LOGITS, b=OTHER), "", ["output_key", "'a' [2, 3]", "'b' [2, 5]"]),
        ("text", "", ["returns str", "allowed: a tensor"]),
        (None, "logits", ["returns NoneType"]),
    ],
)
def test_what_cannot_be_told_apart_is_refused(output, key, parts):
    with pytest.raises(UserError) as caught:
        find_logits(output, key, "teacher")
    assert [part for part in parts if part not in str(caught.value)] == []


def test_a_tuple_in_train_mode_and_a_tensor_in_eval_mode():
    model = Wrapping(lambda logits, training: (logits, logits * 2) if training else logits)
    read_logits(model, "0", "student")
    images = torch.randn(2, 1, 2, 2)
    assert torch.equal(model.train()(images), model.eval()(images))


def test_positions_of_size_one_are_dropped():
    model = Wrapping(lambda logits, training: logits[:, :, None, None])
    read_logits(model, "", "student")
    assert model(torch.randn(2, 1, 2, 2)).shape == (2, 3)


def test_reading_changes_neither_names_nor_copies():
    model = Wrapping(pick_dict)
    names = list(model.state_dict())
    read_logits(model, "", "student")
    assert list(model.state_dict()) == names
    images = torch.randn(2, 1, 2, 2)
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(same(images), model(images))


@pytest.mark.parametrize("whole", [1.0, 100.0])
def test_probabilities_and_per_cent_are_no_logits(whole):
    given = whole * torch.tensor([[0.2, 0.8], [0.9, 0.1]])
    with pytest.raises(UserError, match=r"teacher: .*probabilities .*sum to 1, or to 100"):
        refuse_probabilities(given, "teacher")
    refuse_probabilities(given.log(), "teacher")
    refuse_probabilities(given + torch.tensor([[0.0], [0.1 * whole]]), "teacher")


def pick_dict(logits, training):
    return {"logits": logits}


def test_the_network_can_be_traced_for_export():
    model = Wrapping(pick_dict)
    read_logits(model, "", "student")
    program = torch.export.export(model.eval(), (torch.randn(2, 1, 2, 2),))
    images = torch.randn(2, 1, 2, 2)
    assert torch.allclose(program.module()(images), model(images))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # from torch.compile
def test_wrappers_are_taken_off_inside_and_outside():
    inner = nn.Sequential(torch.compile(nn.Linear(4, 4)), nn.DataParallel(nn.Linear(4, 3)))
    names = set(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).state_dict())
    inner.compile()
    bare = unwrap_all(torch.compile(inner))
    assert set(bare.state_dict()) == names
    assert pickle.loads(pickle.dumps(bare))(torch.zeros(1, 4)).shape == (1, 3)


def test_a_search_for_a_sigmoid_leaves_layers_with_several_names_as_they_are():
    layer, tied = nn.Linear(4, 4), nn.Linear(4, 4)
    tied.weight = layer.weight
    network = nn.Sequential(layer, nn.ReLU(), layer, tied, nn.Linear(4, 3))
    before = {name: (value, value.detach().clone()) for name, value in network.named_parameters()}
    refuse_bounded(network, lambda logits: logits, torch.randn(2, 4), "student")
    after = dict(network.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is value for name, (value, _) in before.items())
    assert all(torch.equal(after[name], copied) for name, (_, copied) in before.items())
    bounded = nn.Sequential(*network, nn.Sigmoid())
    with pytest.raises(UserError, match="student: all its outputs lie between 0 and 1"):
        refuse_bounded(bounded, lambda logits: logits, torch.randn(2, 4), "student")
