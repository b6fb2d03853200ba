"""What the live view is told of a search, and which points of its curves MLflow gets."""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ladder_play import Assignment, experiment, ladder, quality
from optuna.trial import TrialState
from rich.console import Console

from krscale.config import Experiment
from krscale.progress import Progress
from krscale.report import Curve, CurveSize, FrontTrial, MethodResult
from krscale.search.callbacks import ProgressListener, TrackingListener
from krscale.search.studies.pruners import expected_share
from krscale.search.studies.trial_spec import TuningKey
from krscale.setup.sizes import StudentSize
from krscale.time_left import Workload
from krscale.tracking import Tracker

SECONDS = {"1/4": 20.0, "1/64": 1.0}
"""Seconds per epoch of each capacity."""


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def played(folder: Path, clock: Clock, limit: int = 1000) -> list[tuple[float, float | None]]:
    """Run up to `limit` trials of a search on one worker; return clock and estimate over time."""
    config = experiment(**{"search.trials_per_size": 12, "train.num_epochs": 8})
    keys = [(method, capacity) for capacity in SECONDS for method in ("plain", "kr")]
    progress = Progress(
        True, dict.fromkeys(keys, 14), workload=Workload(2, 8, expected_share(config.search, 8)),
        console=Console(file=io.StringIO()), clock=clock, num_workers=1,
    )  # fmt: skip
    listener = ProgressListener(progress)
    found = ladder(folder, config, (listener,))
    progress.plan(dict.fromkeys(keys, 14), {"1/4": 160_000.0, "1/64": 10_000.0})
    listener.recall(found)
    series = []
    for _ in range(limit):
        if not isinstance(upcoming := found.next(), Assignment):
            break
        metrics: dict[str, float] = {}
        state = TrialState.COMPLETE
        for epoch in range(1, 9):
            clock.now += SECONDS[upcoming.key.capacity]
            accuracy = quality(upcoming) * epoch / 8
            metrics = {"val/accuracy": accuracy, "val/loss": 1 - accuracy, "epoch": float(epoch)}
            stops = found.report(upcoming, metrics)
            series.append((clock.now, progress.seconds_left()))
            if stops and epoch < 8:
                state = TrialState.PRUNED
                break
        found.finish(upcoming, state, metrics)
    return series


def test_a_search_with_early_stopping_tells_the_time_left(tmp_path: Path) -> None:
    series = played(tmp_path, Clock())
    end = series[-1][0]
    late = [(end - now, left) for now, left in series if 0.1 * end <= now <= 0.98 * end]
    assert len(late) > 100
    assert all(left is not None and now / 2 <= left <= 2 * now for now, left in late)


def test_a_search_that_goes_on_learns_from_its_journal(tmp_path: Path) -> None:
    clock = Clock()
    played(tmp_path, clock, limit=30)
    before = clock.now
    series = played(tmp_path, clock)
    end = series[-1][0]
    tenth = before + 0.1 * (end - before)
    late = [(end - now, left) for now, left in series if tenth <= now <= end - 25]
    assert len(late) > 40
    assert all(left is not None and now / 2 <= left <= 2 * now for now, left in late)
    assert series[0][1] is None or series[0][1] == pytest.approx(end - before, rel=1.0)


SIZE = StudentSize("1/4", width=2, num_parameters=900, flops=5_000)
NET = Experiment.model_validate(
    {"name": "one", "student": {"model": "my_models:Net", "options": {"activation": "relu"}}}
)
TEACHER = {
    "model": "resnet", "width": 8, "num_parameters": 9_000, "flops": 10**6,
    "val_accuracy": 0.98, "test_accuracy": 0.97,
}  # fmt: skip


class Kept(Tracker):
    """A tracker without MLflow that counts the points it would record."""

    def __init__(self, folder: Path) -> None:
        super().__init__("", "digits", folder, enabled=False)
        self.points: Counter[tuple[str, str, int, float]] = Counter()

    def _append(self, op: Any, key: str, content: dict[str, Any], *time_ms: int | None) -> None:
        super()._append(op, key, content, *time_ms)
        for name, value in content.get("metrics", {}).items():
            self.points[key, name, content["step"], value] += 1


def listener(tracker: Tracker) -> TrackingListener:
    """Return the listener of a start, without the data and the teacher of a search."""
    found = object.__new__(TrackingListener)
    vars(found).update(
        tracker=tracker, experiment=NET, sizes={"1/4": SIZE}, latencies={"1/4": 1.5}, tags={},
        params={"plain": {}}, datasets=[], teacher="resnet width 8",
        runs={"plain": tracker.newest("plain")},
    )  # fmt: skip
    found._start_search("plain")
    return found


def curve(*accuracies: float, front: tuple[float, ...] = ()) -> Curve:
    """Return a curve of students of one size, each with its accuracy, and fronts of one latency."""
    sizes = tuple(
        CurveSize(
            capacity=f"student-{number}", width=2, num_parameters=900, flops=5_000, latency_ms=1.5,
            methods={
                "plain": MethodResult.over_seeds(
                    seeds=[1], val_accuracies=[accuracy], test_accuracies=[accuracy],
                    num_trials=1, num_pruned=0, num_failed=0, best={},
                    front=[
                        FrontTrial(
                            number=n, objectives={"val/accuracy": at, "num_parameters": 900.0},
                            settings={},
                        )
                        for n, at in enumerate(front)
                    ],
                )
            },
        )
        for number, accuracy in enumerate(accuracies)
    )  # fmt: skip
    return Curve(name="one", commit="c", data={}, teacher=TEACHER, sizes=sizes, pareto=())


def test_points_that_share_a_step_are_recorded_once_each(tmp_path: Path) -> None:
    """Each differs from the last point at its step; every start recorded both again."""
    tracker = Kept(tmp_path)
    for _ in range(3):
        listener(tracker)._log_points(curve(0.5, 0.75, front=(0.5, 0.25)), "plain")
    assert set(tracker.points.values()) == {1}
    assert {run for run, *_ in tracker.points} == {"plain"}
    for accuracy in (0.5, 0.75):
        assert tracker.points["plain", "curve/test_accuracy", 900, accuracy] == 1
    for accuracy in (0.5, 0.25):
        assert tracker.points["plain", "front/val_accuracy", 900, accuracy] == 1


def test_a_point_that_shares_a_step_and_has_changed_gets_another_run(tmp_path: Path) -> None:
    """Fails if only the last point at a step is compared: the former one stayed in the chart."""
    tracker = Kept(tmp_path)
    for accuracies in ((0.5, 0.75), (0.625, 0.75)):
        listener(tracker)._log_points(curve(*accuracies), "plain")
    runs: dict[str, set[float]] = {}
    for run, name, _, value in tracker.points:
        if name == "curve/test_accuracy":
            runs.setdefault(run, set()).add(value)
    assert runs == {"plain": {0.5, 0.75}, "plain:2": {0.625, 0.75}}


@pytest.mark.parametrize(("activation", "is_known"), [("relu", True), ("gelu", False)])
def test_a_trial_has_the_latency_of_its_own_architecture_or_none(
    activation: str, is_known: bool, tmp_path: Path
) -> None:
    tracker = Kept(tmp_path)
    values = {"student.options.activation": activation}
    trial = Assignment(TuningKey("plain", "1/4"), 0, "plain/1-4/trial-0", SIZE, values, 0)
    listener(tracker).on_start(trial)
    known = [value for (_, name, _, value) in tracker.points if name == "size/latency_ms"]
    assert known == [1.5] * is_known
