"""Teacher and students as objects: which are named, and which are built from the object."""

from __future__ import annotations

import functools
import threading
from typing import Any

import pytest
import torch
from foreign_networks import LikeResNet
from torch import nn

from krscale.cluster.sending import check_sendable
from krscale.config import LadderConfig, StudentConfig, TeacherConfig
from krscale.errors import UserError
from krscale.models import build_model
from krscale.models.given import available
from krscale.search.given_networks import read_students, read_teacher

DIAL = {"num_classes": 3, "in_channels": 1, "width": 5, "options": {}}


def built(name: str, **changes: Any) -> Any:
    return build_model(name, **{**DIAL, **changes})


def positional(w: int) -> nn.Module:
    return LikeResNet(w)


def test_a_class_that_can_be_imported_is_named() -> None:
    found = read_students(LikeResNet)
    assert found.tables == {"student": {"model": "foreign_networks:LikeResNet", "options": {}}}
    assert not found.builders
    assert read_teacher(LikeResNet).tables["teacher"]["weights"] == "own"


@pytest.mark.parametrize(
    "student",
    [
        lambda width: LikeResNet(width),
        lambda w: LikeResNet(w),
        positional,
        functools.partial(LikeResNet),
    ],
)
def test_others_are_built_from_what_was_given(student: Any) -> None:
    found = read_students(student)
    name = found.tables["student"]["model"]
    assert name.startswith("object:students.")
    with available(found.builders):
        assert built(name).conv1.out_channels == 5
    with pytest.raises(UserError, match=r"was given to krscale\.search as an object"):
        built(name)


def test_a_mapping_is_a_ladder_of_ones_own() -> None:
    found = read_students(
        {"tiny": lambda: LikeResNet(2), "zoo": "resnet", "file": {"model": "m:f", "width": 3}}
    )
    tiny, zoo, file = found.tables["ladder"]["students"]
    assert zoo == {"name": "zoo", "model": "resnet"}
    assert file == {"name": "file", "model": "m:f", "width": 3}
    with available(found.builders):
        assert built(tiny["model"]).conv1.out_channels == 2


class Own(LikeResNet):
    def __init__(self, width: int = 3, num_classes: int = 3, depth: int = 1) -> None:
        assert num_classes == 3
        super().__init__(width)


def free(**options: Any) -> nn.Module:
    assert options == {"num_classes": 3, "in_channels": 1}
    return LikeResNet(3)


@pytest.mark.parametrize("value", [Own, free, lambda width=None: LikeResNet(width or 3)])
def test_a_student_of_one_size_keeps_its_own_width(value: Any) -> None:
    """Fails if a class with a default width is built with another one."""
    found = read_students({"own": value})
    (table,) = found.tables["ladder"]["students"]
    with available(found.builders):
        width = table.get("width", 1)
        assert built(table["model"], width=width).conv1.out_channels == 3
    found = read_teacher(value)
    with available(found.builders):
        width = found.tables["teacher"].get("width", 32)
        assert built(found.tables["teacher"]["model"], width=width).conv1.out_channels == 3


def test_a_teacher_is_copied_when_it_is_given() -> None:
    network = torch.nn.DataParallel(LikeResNet(4))
    found = read_teacher(network)
    (name,) = found.builders
    assert name == "object:teacher.DataParallel"
    assert found.tables["teacher"] == {"model": name, "options": {}, "weights": "own"}
    before = network.module.fc.bias.clone()
    with torch.no_grad():
        network.module.fc.bias += 1
    with available(found.builders):
        first, second = built(name), built(name)
        with torch.device("meta"):
            built(name)  # the copy stays on its device; nothing fails
    assert first is not second
    assert torch.equal(first.fc.bias, before)
    assert network.module.training, "the user's own is left as it is"


def test_sections_of_an_experiment_are_taken_as_they_are() -> None:
    assert read_teacher(TeacherConfig(width=3)).tables == {"teacher": {"width": 3}}
    assert read_teacher({"model": "resnet"}).tables == {"teacher": {"model": "resnet"}}
    assert read_teacher("resnet").tables == {"teacher": {"model": "resnet"}}, "it is trained here"
    assert read_teacher("timm:vit").tables["teacher"]["weights"] == "own"
    ladder = LadderConfig(capacities=("1/4",))
    assert read_students(ladder).tables == {"ladder": {"capacities": ("1/4",)}}
    assert read_students(StudentConfig(model="mobilenet")).tables == {
        "student": {"model": "mobilenet"}
    }


@pytest.mark.parametrize(
    ("read", "value", "said"),
    [
        (read_students, LikeResNet(2), "built already .LikeResNet.; give its class"),
        (read_students, {"tiny": LikeResNet(2)}, r"students\['tiny'\]: a network that is built"),
        (read_students, {"own": lambda w: LikeResNet(w)}, "needs a width, .* one size"),
        (read_students, {"own": lambda width: LikeResNet(width)}, "needs a width"),
        (read_students, {}, "at least one"),
        (read_students, 3, "students: int; expected"),
        (read_teacher, 3, "teacher: int; expected"),
    ],
)
def test_what_is_wrong_is_said(read: Any, value: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(value)


def test_what_cannot_be_copied_or_sent_is_refused_at_once() -> None:
    network = LikeResNet(2)
    network.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"teacher: this LikeResNet cannot be copied .*lock"):
        read_teacher(network)
    lock = threading.Lock()
    found = read_students({"tiny": lambda: LikeResNet(2 + lock.locked())})
    with pytest.raises(UserError, match=r"tiny.*cannot be sent to workers.*into a module"):
        check_sendable(found.builders)


def test_a_student_has_one_name() -> None:
    with pytest.raises(UserError, match=r"students\['a'\]: name: 'b' is another one"):
        read_students({"a": {"name": "b", "model": "resnet"}})
    found = read_students({"a": {"name": "a", "model": "resnet"}})
    assert found.tables["ladder"]["students"] == [{"name": "a", "model": "resnet"}]
