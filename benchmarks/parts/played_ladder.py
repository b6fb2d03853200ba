"""krscale's own ladder of studies on a surrogate: no Ray, no training, no clock."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from krscale.config import Experiment, load
from krscale.search.space.space import load_space
from krscale.search.studies.ladder import Ladder
from krscale.search.studies.scheduling import StudyScheduler
from krscale.search.studies.study import FinalStudy
from krscale.search.studies.trial_spec import Assignment
from krscale.setup.sizes import StudentSize
from parts.recording import CAPACITIES, TASK
from parts.surrogate import Surrogate

NUM_TAPS = 6
"""Taps of the recorded teacher."""
SIZES = {capacity: 1_000 * 4**place for place, capacity in enumerate(CAPACITIES)}
"""Parameters of the sizes; the ladder uses only their order."""


class _NoFinals(StudyScheduler):
    def _may_start(self, finals: FinalStudy) -> bool:
        return False

    def _plan_finals(self, finals: FinalStudy) -> None:
        """Plan none."""


class TunedOnly(Ladder):
    """A ladder without finals."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.scheduler = _NoFinals(self.experiment, self.tuning, self.finals, self.budget)


def search_experiment(*changes: str) -> Experiment:
    """Return the recorded task's experiment with changes of its search."""
    return load(None, [*TASK, *changes])


def play(
    surrogate: Surrogate,
    experiment: Experiment,
    on_end: Callable[[Assignment, int, float | None], bool],
) -> None:
    """Run trials one after the other until the ladder is complete or `on_end` returns False.

    Args:
        surrogate: Source of the curves.
        experiment: Result of `search_experiment`.
        on_end: Called with the trial, its number of epochs, and its accuracy (None if it was
            stopped early); returns whether to continue.
    """
    with tempfile.TemporaryDirectory() as folder:
        ladder = open_ladder(Path(folder), experiment)
        while isinstance(upcoming := ladder.next(), Assignment):
            curve = surrogate.curve(upcoming.key.capacity, upcoming.values)
            epochs, accuracy = play_trial(ladder, upcoming, curve)
            if not on_end(upcoming, epochs, accuracy):
                return


def open_ladder(folder: Path, experiment: Experiment) -> Ladder:
    """Open the studies of an experiment in a folder."""
    sizes = [StudentSize(c, 1, size, 10 * size) for c, size in SIZES.items()]
    space = load_space(experiment, NUM_TAPS)
    return TunedOnly(folder / "journal.log", experiment, space, sizes)


def play_trial(
    ladder: Ladder, assignment: Assignment, curve: list[float]
) -> tuple[int, float | None]:
    """Report a curve epoch by epoch; return the epochs reported, and its end if it was reached."""
    metrics: Mapping[str, float] = {}
    for epoch, accuracy in enumerate(curve, start=1):
        metrics = {"val/accuracy": accuracy, "val/loss": 1 - accuracy, "epoch": float(epoch)}
        if ladder.report(assignment, metrics) and epoch < len(curve):
            ladder.finish(assignment, TrialState.PRUNED, metrics)
            return epoch, None
    ladder.finish(assignment, TrialState.COMPLETE, metrics)
    return len(curve), curve[-1]
