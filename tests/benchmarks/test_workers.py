"""`benchmarks/workers.py`: what it times, and that its table says what was not measured."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import workers
from documents import ROOT
from drilling import Drill
from parts.worker_steps import TASK, by_torchrun, in_turns_by_torchrun, prepared, seconds_of_steps

from krscale.files import read_json


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_seconds_are_of_the_epochs_after_the_first(tmp_path: Path) -> None:
    changes = (*TASK, *workers.TINY, "distill.probe_grid=1")
    found = seconds_of_steps(str(tmp_path), changes, 4, 2)
    assert len(found) == 2
    assert all(0 < seconds < 60 for seconds in found)


def test_ratios_are_of_what_ran_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"one": [0.8, 1.6, 0.8], "two": [0.4, 1.0, 0.5], "apart": [0.4, 0.8, 0.4]}
    asked: list[Any] = []

    def run(*arguments: Any) -> dict[str, list[float]]:
        asked.append(arguments)
        return seconds

    monkeypatch.setattr(workers, "in_turns_by_torchrun", run)
    monkeypatch.setattr(workers, "prepared", lambda *_: None)
    found = workers.measure_speedup(tmp_path, TASK, 64, 3)
    assert asked == [(2, str(tmp_path), TASK, 64, 3)]
    assert (found["limit"], found["speedup"], found["share_of_limit"]) == (2.0, 1.6, 0.8)
    assert found["limit_interval"] == [2.0, 2.0]
    assert found["speedup_interval"] == [1.6, 2.0]
    assert found["one_ms"] == [400.0, 800.0, 400.0]


def test_the_loop_is_timed_with_and_without_a_core_to_spare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []
    seconds = {("ray", 2): [2.2, 2.1, 2.0], ("torchrun", 2): [2.0], ("ray", 1): [3.0],
               ("torchrun", 1): [4.0, 3.0]}  # fmt: skip

    def run(by: str, num_workers: int, *arguments: Any) -> list[float]:
        asked.append((by, num_workers))
        return seconds[by, num_workers]

    monkeypatch.setattr(workers, "by_ray_train", partial(run, "ray"))
    monkeypatch.setattr(workers, "by_torchrun", partial(run, "torchrun"))
    monkeypatch.setattr(workers, "prepared", lambda *_: None)
    monkeypatch.setattr(workers, "connect", lambda *_: None)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    found = workers.measure_loop(tmp_path, TASK, 64, 2)
    assert asked == [("ray", 2), ("torchrun", 2), ("ray", 1), ("torchrun", 1)] * 2
    assert found["ray_train_over_torchrun"] == 1.05
    assert found["spare_core"] == pytest.approx(3.0 / 3.5, abs=1e-3)
    assert found["torchrun_spare_core_ms"] == [3500.0, 3500.0]


def part(**found: Any) -> dict[str, Any]:
    """The record of a part."""
    return found | {
        "command": "python benchmarks/workers.py", "commit": "0" * 40, "seconds": 9,
        "load_before_and_after": [0.1, 1.9],
    }  # fmt: skip


def test_the_table_has_goals_and_says_what_was_not_measured() -> None:
    table = workers.workers_table({"machine": "two cores"})
    assert table.startswith("Not measured: loop, speedup, group_norm, starts, nodes.")
    found = {
        "machine": "two cores",
        "loop": part(
            ray_train_over_torchrun=1.01,
            ray_train_over_torchrun_interval=[1.0, 1.03],
            spare_core=0.99,
            spare_core_interval=[0.98, 1.01],
            width=64,
        ),
        "starts": part(trial_start_s={"1": 0.02, "2": 0.07}),
        "nodes": part(over_one_node={"1": 1.0, "3": 2.9}, seconds_of_a_trial=2.0),
    }
    table = workers.workers_table(found)
    assert (
        "| a step of two workers, Ray Train / torchrun (width 64) | 1.01 [1.0, 1.03] | 1.02 |"
        in table
    )
    assert "leaves a core to Ray's own processes | 0.99 [0.98, 1.01] | 1.02 |" in table
    assert "| seconds between two trials of a group of two workers | 0.07 | 0.5 |" in table
    assert "on 3 node(s) over one; trials that sleep for 2.0 s | 2.9 |" in table
    assert "Not measured: speedup, group_norm." in table


def test_the_share_of_what_the_machine_allows_stands_beside_the_speedup() -> None:
    found = part(
        speedup=1.7, speedup_interval=[1.6, 1.8], limit=1.8, limit_interval=[1.7, 1.9],
        share_of_limit=0.95, share_of_limit_interval=[0.93, 0.97], width=8,
    )  # fmt: skip
    table = workers.workers_table({"machine": "m", "speedup": found})
    assert "| 1.7 [1.6, 1.8] | 1.85 |" in table
    assert "allows (1.85 of 2 is 0.925) | 0.95 [0.93, 0.97] | |" in table


def test_a_student_without_batch_norm_is_timed_beside_the_one_with_it() -> None:
    both = {
        name: part(
            speedup=speedup, speedup_interval=[1.6, 1.9], limit=1.9, limit_interval=[1.8, 2.0],
            share_of_limit=0.95, share_of_limit_interval=[0.93, 0.97], width=8,
        )
        for name, speedup in (("speedup", 1.7), ("group_norm", 1.8))
    }  # fmt: skip
    table = workers.workers_table({"machine": "m", **both})
    assert "a step of the same batch (width 8) | 1.7 [1.6, 1.9] | 1.85 |" in table
    assert "no exchange within a step (width 8) | 1.8 [1.6, 1.9] | 1.85 |" in table


def test_the_page_is_what_was_measured() -> None:
    result = read_json(workers.RESULT) if workers.RESULT.exists() else {}
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    assert workers.workers_table(result) in page


@pytest.mark.drill
@pytest.mark.timeout(900)
def test_two_workers_of_torchrun_take_the_same_steps(tmp_path: Path, drill: Drill) -> None:
    drill.must_hold("torchrun's workers train and are timed")
    drill.injected("two workers that torchrun starts", kind="load")
    changes = (*TASK, *workers.TINY)
    prepared(tmp_path, changes)
    found = by_torchrun(2, str(tmp_path), changes, 4, 1)
    assert len(found) == 1
    in_turns = in_turns_by_torchrun(2, str(tmp_path), changes, 4, 2)
    assert {name: len(seconds) for name, seconds in in_turns.items()} == {
        "one": 2, "two": 2, "apart": 2,
    }  # fmt: skip
    without = in_turns_by_torchrun(2, str(tmp_path), (*changes, workers.GROUP_NORM), 4, 1)
    assert set(without) == {"one", "two", "apart"}
    drill.held("one epoch of two workers was timed, and turns of one, two and two apart")
