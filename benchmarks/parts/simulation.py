"""(f) A simulated large search on a large cluster: krscale's ladder with a simulated clock.

The ladder is the real one, including journal and samplers; its seconds are measured and charged to
a driver that does one thing at a time. No training runs: the seconds of trainings are those of
recorded trials, scaled. Ray's own seconds for a trial are taken from the no-op trials.
"""

from __future__ import annotations

import heapq
import itertools
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from optuna.trial import TrialState

from krscale.search.studies.ladder import Ladder
from krscale.search.studies.trial_spec import Assignment
from parts.played_ladder import SIZES, open_ladder, search_experiment
from parts.surrogate import Surrogate

_T = TypeVar("_T")
METHODS = ("kr", "kr+kd", "kr+dkd", "kr+dist")
"""There is a study for each method and size; all of them use the curves of `kr`."""


@dataclass
class Driver:
    """The driver's process; `free_at` is the simulated time at which its work so far is done."""

    free_at: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def does(self, what: str, work: Callable[[], _T], now: float, extra: float = 0.0) -> _T:
        """Do the work, and charge its seconds plus `extra`, which it would take elsewhere."""
        started = time.process_time()
        result = work()
        took = time.process_time() - started + extra
        self.free_at = max(self.free_at, now) + took
        self.seconds[what] += took
        self.counts[what] += 1
        return result


def simulate(
    surrogate: Surrogate,
    num_trials: int,
    num_workers: int,
    trial_seconds: float,
    ray_seconds_per_trial: float,
) -> dict[str, Any]:
    """Return where the time goes in a search of `num_trials` trials on `num_workers` workers.

    Args:
        surrogate: Learning curves and the recorded seconds of whole trials.
        num_trials: Trials of all studies together.
        num_workers: Number of simultaneous trials.
        trial_seconds: The mean length of a whole trial, to which the recorded ones are scaled.
        ray_seconds_per_trial: Seconds that Ray Tune's controller spends on a trial.
    """
    per_study = num_trials // (len(SIZES) * len(METHODS))
    experiment = search_experiment(
        f"search.methods={list(METHODS)}", f"search.trials_per_size={per_study}"
    )
    with tempfile.TemporaryDirectory() as folder:
        ladder = open_ladder(Path(folder), experiment)
        driver, busy, end, asks = _run(
            ladder, surrogate, num_workers, trial_seconds, ray_seconds_per_trial
        )
        size = (Path(folder) / "journal.log").stat().st_size
        started = time.process_time()
        open_ladder(Path(folder), experiment)
        reopened = time.process_time() - started
    total = sum(driver.seconds.values())
    per_trial = total / driver.counts["ask"]
    return {
        "num_trials": driver.counts["ask"],
        "num_studies": len(SIZES) * len(METHODS),
        "num_workers": num_workers,
        "trial_seconds": trial_seconds,
        "wall_seconds": round(end, 1),
        "workers_busy": round(busy / (num_workers * end), 3),
        "driver_busy": round(total / end, 3),
        "driver_seconds": {what: round(s, 1) for what, s in driver.seconds.items()},
        "driver_ms": {w: round(1e3 * s / driver.counts[w], 2) for w, s in driver.seconds.items()},
        "ask_ms_first_and_last_tenth": _ends(asks),
        "journal_megabytes": round(size / 1e6, 1),
        "reopen_seconds": round(reopened, 1),
        "trial_seconds_needed_for_95_percent": round(0.95 * num_workers * per_trial, 1),
    }


def _run(
    ladder: Ladder,
    surrogate: Surrogate,
    num_workers: int,
    trial_seconds: float,
    ray_seconds: float,
) -> tuple[Driver, float, float, list[float]]:
    """Process all events in the order of the simulated clock."""
    draws = np.random.default_rng(0)
    mean = float(np.mean(np.concatenate(list(surrogate.seconds.values()))))
    driver, busy, asks = Driver(), 0.0, []
    order = itertools.count()
    # (when, tie-break, trial, its curve, epochs it has run, seconds per epoch)
    events: list[Any] = []
    idle, now = num_workers, 0.0

    def start_all() -> None:
        nonlocal idle
        while idle:
            before = driver.seconds["ask"]
            upcoming = driver.does("ask", ladder.next, now)
            if not isinstance(upcoming, Assignment):
                driver.counts["ask"] -= 1
                return
            asks.append(driver.seconds["ask"] - before)
            driver.does("ray", lambda: None, now, ray_seconds)
            curve = surrogate.curve(upcoming.key.capacity, upcoming.values)
            whole = draws.choice(surrogate.seconds[upcoming.key.capacity]) / mean * trial_seconds
            epoch = float(whole) / len(curve)
            heapq.heappush(events, (driver.free_at + epoch, next(order), upcoming, curve, 1, epoch))
            idle -= 1

    start_all()
    while events:
        now, _, trial, curve, epochs, seconds = heapq.heappop(events)
        busy += seconds
        accuracy = curve[epochs - 1]
        metrics = {"val/accuracy": accuracy, "val/loss": 1 - accuracy, "epoch": float(epochs)}
        stop = driver.does("report", lambda t=trial, m=metrics: ladder.report(t, m), now)
        if epochs < len(curve) and not stop:
            # A worker continues when the driver has processed its report.
            heapq.heappush(
                events, (driver.free_at + seconds, next(order), trial, curve, epochs + 1, seconds)
            )
            continue
        state = TrialState.COMPLETE if epochs == len(curve) else TrialState.PRUNED
        driver.does("finish", lambda t=trial, s=state, m=metrics: ladder.finish(t, s, m), now)
        idle += 1
        start_all()
    return driver, busy, driver.free_at, asks


def _ends(seconds: list[float]) -> list[float]:
    tenth = max(1, len(seconds) // 10)
    parts = seconds[:tenth], seconds[-tenth:]
    return [round(1e3 * sum(part) / len(part), 2) for part in parts]
