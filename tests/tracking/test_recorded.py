"""What a record holds so far, event by event."""

from __future__ import annotations

from typing import Any

from krscale.tracking.recorded import Recorded, successor
from krscale.tracking.spool import Event, Operation


def recorded(*events: tuple[Operation, dict[str, Any]]) -> Recorded:
    found = Recorded()
    for op, content in events:
        found.note(Event(op, "kr", 0, content))
    return found


START: tuple[Operation, dict[str, Any]] = ("start", {})
END: tuple[Operation, dict[str, Any]] = ("end", {"status": "COMPLETE"})


def test_a_run_has_ended_until_it_is_started_or_its_end_is_taken_back() -> None:
    assert not recorded().has_run("kr")
    assert recorded(START).has_run("kr")
    assert not recorded(START).has_ended("kr")
    assert recorded(START, END).has_ended("kr")
    assert not recorded(START, END, START).has_ended("kr")
    assert not recorded(START, END, ("end", {"status": "RUNNING"})).has_ended("kr")
    assert recorded(START, END).has_run("kr")


def test_the_last_value_at_a_step_is_the_one_that_counts() -> None:
    points: list[tuple[Operation, dict[str, Any]]] = [
        ("log", {"metrics": {"val/accuracy": value}, "step": 4}) for value in (0.5, 0.75)
    ]
    found = recorded(START, *points)
    assert found.has_point("kr", "val/accuracy", 4, 0.75)
    assert not found.has_point("kr", "val/accuracy", 4, 0.5)
    assert not found.has_point("kr", "val/accuracy", 5, 0.75)
    assert not found.has_point("kd", "val/accuracy", 4, 0.75)


def test_a_run_that_takes_the_place_of_another_is_found_by_the_key_of_the_first() -> None:
    found = Recorded()
    assert found.newest("kr+kd") == "kr+kd"
    keys = ["kr+kd"]
    for _ in range(11):
        found.note(Event("start", keys[-1], 0, {}))
        assert found.newest("kr+kd") == keys[-1]
        keys.append(successor(keys[-1]))
    assert keys[1:3] + keys[-1:] == ["kr+kd:2", "kr+kd:3", "kr+kd:12"]
    assert found.newest("kr") == "kr"


def test_the_points_of_a_run_are_its_own() -> None:
    found = recorded(START, ("log", {"metrics": {"curve/test_accuracy": 0.5}, "step": 900}))
    found.note(Event("log", "kr:2", 0, {"metrics": {"curve/test_accuracy": 0.75}, "step": 900}))
    assert found.points("kr") == {("curve/test_accuracy", 900, 0.5)}
    assert found.points("kr:2") == {("curve/test_accuracy", 900, 0.75)}


def test_the_points_of_a_run_include_those_that_share_a_step() -> None:
    points: list[tuple[Operation, dict[str, Any]]] = [
        ("log", {"metrics": {"curve/test_accuracy": value}, "step": 900})
        for value in (0.5, 0.75, 0.75, 0.5)
    ]
    found = recorded(START, *points)
    assert found.points("kr") == {
        ("curve/test_accuracy", 900, 0.5), ("curve/test_accuracy", 900, 0.75),
    }  # fmt: skip


def test_the_next_step_is_that_of_the_metrics_of_one_prefix() -> None:
    found = recorded(
        START,
        ("log", {"metrics": {"system/cpu": 1.0}, "step": 2}),
        ("log", {"metrics": {"val/accuracy": 1.0}, "step": 9}),
    )
    assert found.next_step("kr", "system/") == 3
    assert found.next_step("kd", "system/") == 0
