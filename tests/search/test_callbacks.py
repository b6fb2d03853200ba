"""What the live view is told of a search, from which it estimates the time left."""

import io
from pathlib import Path

import pytest
from ladder_play import Assignment, experiment, ladder, quality
from optuna.trial import TrialState
from rich.console import Console

from krscale.progress import Progress
from krscale.search.callbacks import ProgressListener
from krscale.search.studies.pruners import expected_share
from krscale.time_left import Workload

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
