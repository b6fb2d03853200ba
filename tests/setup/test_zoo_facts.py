"""What is remembered of a network, and that nothing else is answered with it."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
from torch import nn

from krscale.config import load
from krscale.models import ZOO
from krscale.setup import zoo_facts
from krscale.setup.networks import Networks
from krscale.setup.sizes import ladder_sizes
from krscale.setup.zoo_facts import remembered


@dataclass(frozen=True)
class Task:
    num_classes: int = 10
    image_shape: tuple[int, int, int] = (1, 8, 8)
    num_train: int = 100


def resolved(*settings: str, **task: Any) -> tuple[Any, ...]:
    networks = Networks.resolve(
        load(None, ["teacher.width=8", "ladder.capacities=['1/4']", *settings]),
        replace(Task(), **task),
    )
    return networks.teacher, ladder_sizes(networks)


CHANGES: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    ((), {}),
    (("teacher.width=9",), {}),
    (("teacher.options={num_blocks=1}",), {}),
    (("teacher.model=mobilenet", "teacher.options={}"), {}),
    (("teacher.taps=['stages.0.0']", "distill.granularity=1"), {}),
    (("teacher.preprocessing.input_size=16",), {}),
    (("student.options={num_blocks=2}",), {}),
    (("student.preprocessing.input_size=16",), {}),
    ((), {"num_classes": 7}),
    ((), {"image_shape": (3, 8, 8)}),
    ((), {"image_shape": (1, 12, 12)}),
]


def test_it_differs_by_all_that_it_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is the same as in a process that remembers nothing, and no two are the same."""
    kept = [resolved(*settings, **task) for settings, task in CHANGES]
    again = [resolved(*settings, **task) for settings, task in CHANGES]
    monkeypatch.setattr(zoo_facts, "MOST_KEPT", 0)
    fresh = []
    for settings, task in CHANGES:
        monkeypatch.setattr(zoo_facts, "_kept", {})
        fresh.append(resolved(*settings, **task))
    assert kept == again == fresh
    assert len(set(map(repr, kept))) == len(CHANGES)


def test_networks_of_the_user_are_computed_each_time() -> None:
    """Their code may have changed, or read a file that has."""
    task, calls = Task(), list[str]()
    for model in ("resnet", "foreign_networks:LikeResNet"):
        config = load(None, [f"teacher.model={model}", "teacher.options={}"]).teacher
        for _ in range(2):
            remembered("test", config, task, 3, lambda name=model: calls.append(name) or len(calls))
    assert calls == ["resnet", *["foreign_networks:LikeResNet"] * 2]


def test_another_network_of_the_same_name_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    before = resolved()
    build = ZOO["resnet"]

    def deeper(num_classes: int, in_channels: int, width: int, num_blocks: int = 2) -> nn.Module:
        return build(num_classes, in_channels, width, num_blocks + 1)

    monkeypatch.setitem(ZOO, "resnet", deeper)
    assert resolved() != before


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo_facts, "MOST_KEPT", 3)
    monkeypatch.setattr(zoo_facts, "_kept", {})
    config = load(None, []).teacher
    for width in range(10):
        assert remembered("test", config, Task(), width, lambda width=width: width) == width
        assert len(zoo_facts._kept) <= 3


def test_what_fails_is_tried_again() -> None:
    config, calls = load(None, []).teacher, list[int]()

    def fail() -> None:
        calls.append(1)
        raise ValueError

    for _ in range(2):
        with pytest.raises(ValueError):  # noqa: PT011
            remembered("fails", config, Task(), 1, fail)
    assert len(calls) == 2
