"""krscale's search on Ray with measurements: when workers train, and when they wait."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from krscale.config import Experiment
from krscale.search.on_ray import run as product
from krscale.search.space.space import SearchSpace
from krscale.setup.prepare import Prepared
from krscale.setup.sizes import StudentSize
from parts.played_ladder import TunedOnly


@dataclass
class Watch:
    """The measurements.

    Attributes:
        steps: Seconds of each trial in training steps, evaluation not included.
        lengths: Seconds of each trial from its first step to its last report.
        gaps: Seconds a worker waited between two trials.
    """

    wall: float = 0.0
    steps: dict[str, float] = field(default_factory=dict)
    begun: dict[str, float] = field(default_factory=dict)
    lengths: dict[str, float] = field(default_factory=dict)
    gaps: list[float] = field(default_factory=list)
    _last: dict[int, float] = field(default_factory=dict)

    def on_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Note a result that has just arrived."""
        now, worker = time.time(), int(result["pid"])
        if trial_id not in self.begun:
            self.begun[trial_id] = began = now - float(result["time_this_iter_s"])
            if worker in self._last:
                self.gaps.append(max(0.0, began - self._last[worker]))
        self._last[worker] = now
        self.lengths[trial_id] = now - self.begun[trial_id]
        self.steps[trial_id] = float(result.get("seconds_in_steps", 0.0))


def watched_search(
    folder: Path,
    experiment: Experiment,
    prepared: Prepared,
    sizes: tuple[StudentSize, ...],
    space: SearchSpace,
    trainable: type | None = None,
) -> Watch:
    """Run a whole search, finals left out, on the connected Ray.

    Args:
        folder: Of the journal.
        experiment: The search.
        prepared: Data, teacher, store.
        sizes: The students.
        space: What is searched.
        trainable: Class that runs in the actors instead of krscale's.
    """
    watch = Watch()
    ladder = TunedOnly(folder / "journal.log", experiment, space, sizes)
    with _looking_on(watch, trainable or product.StudentTrial):
        started = time.perf_counter()
        resources = {"CPU": experiment.search.cpus_per_trial}
        product.run_search(ladder, prepared, resources)
        watch.wall = time.perf_counter() - started
    return watch


@contextmanager
def _looking_on(watch: Watch, trainable: type) -> Iterator[None]:
    class Scheduler(product.LadderScheduler):
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            watch.on_result(trial.trial_id, result)
            return super().on_trial_result(tune_controller, trial, result)

        def on_trial_complete(
            self, tune_controller: Any, trial: Any, result: dict[str, Any]
        ) -> None:
            watch.on_result(trial.trial_id, result)
            super().on_trial_complete(tune_controller, trial, result)

    with (
        patch.object(product, "LadderScheduler", Scheduler),
        patch.object(product, "StudentTrial", trainable),
    ):
        yield
