"""Workers that die: killed by Ray's memory monitor, by a signal, again and again."""

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any, Self

import psutil
import pytest
import torch
from drill_searches import SMALL, Report, attempts, fates, own_ray
from drilling import Drill
from optuna.trial import TrialState
from running import here, overrides
from safetensors.torch import load_file

from krscale.config import Experiment
from krscale.runs import distill
from krscale.search.session import run_session

pytestmark = [pytest.mark.drill, pytest.mark.cluster, pytest.mark.timeout(600)]

ROOM = 3 * 2**30
"""Bytes that trials may take before Ray's memory monitor kills one."""


class MemoryOfOthers:
    """Measures how much the memory of processes outside this test grows.

    Only growth that lasts for a second counts: the memory of a killed process of the test is given
    back only after the process is gone.
    """

    def __init__(self) -> None:
        self.most_grown = 0
        self._ended = Event()
        self._at_first = self._now()
        self._thread = Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        last = deque([0], maxlen=10)
        while not self._ended.wait(0.1):
            last.append(self._now() - self._at_first)
            self.most_grown = max(self.most_grown, min(last))

    def _now(self) -> int:
        own, test = 0, psutil.Process()
        for process in (test, *test.children(recursive=True)):
            with suppress(psutil.Error):
                memory = process.memory_info()
                own += memory.rss - memory.shared
        machine = psutil.virtual_memory()
        return machine.total - machine.available - own


def search_with_little_memory(folder: Path) -> Experiment | None:
    """Run the search of a student that grows; return None where other processes grew as well.

    Ray's memory monitor measures the whole machine, so its limit does not test these trials where
    other processes take some of their memory.
    """
    memory = psutil.virtual_memory()
    threshold = (memory.total - memory.available + ROOM) / memory.total
    if threshold > 0.97:
        pytest.skip("this machine has too little memory to spare")
    limits = {
        "RAY_memory_usage_threshold": f"{threshold:.3f}",
        "RAY_memory_monitor_refresh_ms": "100",
    }
    folder.mkdir()
    experiment = fates(folder, "grows", "calm")
    with MemoryOfOthers() as others, own_ray(2, **limits):
        run_session(experiment, quiet=True)
    return experiment if others.most_grown < ROOM // 2 else None


def test_a_student_that_grows_costs_one_trial(drill: Drill, tmp_path: Path) -> None:
    report = Report(drill, "a student that takes 100 MB more at every step, for ever")
    found = (search_with_little_memory(tmp_path / str(attempt)) for attempt in range(3))
    experiment = next(filter(None, found), None)
    if experiment is None:
        pytest.skip("the memory of other processes grew during each of three searches")
    _, *others = attempts(experiment.run_path, "grows")
    report.must_hold("it is run once more, and no third time", len(others) == 1)
    report.must_hold("the second time alone", others and others[0].user_attrs.get("alone"))
    error = others[-1].user_attrs.get("error", "") if others else ""
    report.must_hold("it is FAIL", others and others[-1].state is TrialState.FAIL)
    report.must_hold(f"in one sentence that names memory: {error!r}", "memory" in error)
    (calm,) = [t for t in attempts(experiment.run_path, "calm") if t.state is TrialState.COMPLETE]
    report.must_hold("the other trial is complete", calm.state is TrialState.COMPLETE)
    report.must_hold("the search has its curve", (experiment.run_path / "curve.json").exists())
    report.done()


def test_a_student_that_crashes_costs_one_trial(drill: Drill, tmp_path: Path) -> None:
    report = Report(drill, "a student whose every step ends its process by SIGSEGV")
    experiment = fates(tmp_path, "crashes", "calm", settings=("search.max_retries=1",))
    with own_ray(2):
        run_session(experiment, quiet=True)
    *_, last = found = attempts(experiment.run_path, "crashes")
    report.must_hold("it is run again search.max_retries = 1 times", len(found) == 2)
    report.must_hold("it is FAIL", last.state is TrialState.FAIL)
    error = last.user_attrs.get("error", "")
    report.must_hold(f"in one sentence: {error!r}", error.startswith("its worker was lost 2 times"))
    (calm,) = [t for t in attempts(experiment.run_path, "calm") if t.state is TrialState.COMPLETE]
    report.must_hold("the other trial is complete", calm.state is TrialState.COMPLETE)
    report.done()


def test_a_killed_rank_of_distill_changes_no_bit(
    drill: Drill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Report(drill, "SIGKILL to one rank of two in mid-epoch")
    epochs: list[int] = []
    train = distill.train_on_workers

    def watched(*arguments: Any) -> dict[str, float]:
        *others, on_epoch, note = arguments
        return train(*others, watching(on_epoch), note)

    def watching(on_epoch: Callable[[dict[str, float]], None]) -> Callable[..., None]:
        def hear(metrics: dict[str, float]) -> None:
            epochs.append(int(metrics["epoch"]))
            on_epoch(metrics)

        return hear

    monkeypatch.setattr(distill, "train_on_workers", watched)
    found = {}
    for fate in ("calm", "killed once"):
        epochs.clear()
        settings = (
            *SMALL, f"storage_path={tmp_path}", f"name={fate.replace(' ', '-')}",
            "train.num_workers=2", "cluster.address=local", "cluster.num_cpus=3",
            "student.model=troubled_student:Troubled",
            f"student.options={{fate = '{fate}', folder = '{tmp_path}'}}",
        )  # fmt: skip
        done = here("distill", ["--quiet", *overrides(*settings)])
        report.must_hold(f"the command ends with 0, {fate}", done.returncode == 0)
        (weights,) = tmp_path.glob(f"{fate.replace(' ', '-')}-*/student.safetensors")
        found[fate] = load_file(weights)
    assert (tmp_path / "died").exists()
    report.must_hold(f"epochs {epochs}: one checkpoint is lost at most", len(epochs) <= 6 + 1)
    report.must_hold("every epoch was run", set(epochs) == set(range(1, 7)))
    same = all(torch.equal(value, found["calm"][n]) for n, value in found["killed once"].items())
    report.must_hold("its weights are those of the undisturbed run, bit by bit", same)
    report.done()
