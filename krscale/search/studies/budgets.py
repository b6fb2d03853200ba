"""Limits that end a search before every study has had its planned trials."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from optuna.trial import FrozenTrial

from krscale.config import SearchConfig
from krscale.search.studies.study import TuningStudy

Span = tuple[datetime, datetime]


@dataclass(frozen=True)
class Ending:
    """Why a study starts no more trials.

    Attributes:
        name: One of `study.ENDINGS`, for the journal, `curve.json` and MLflow.
        text: The same as text for the user.
    """

    name: str
    text: str


class Budget:
    """The limits on the cost of tuning, over all starts of a run, and the cost so far.

    Args:
        config: The limits; 0 means none.
        past: Trials of earlier starts that count.
        clock: Returns the time in seconds; replaced in tests.
        noted: Recorded time in seconds that ended the search before; 0 if time never did. The times
            of its trials add up to less, since they exclude the pauses between trials: with these
            alone, the next start would continue a finished search.
    """

    def __init__(
        self,
        config: SearchConfig,
        past: Iterable[FrozenTrial],
        clock: Callable[[], float] = time.monotonic,
        noted: float = 0.0,
    ) -> None:
        trials = list(past)
        self.config, self.clock = config, clock
        self.started = clock()
        self.seconds_before = max(noted, busy_seconds(filter(None, map(span_of, trials))))
        self.num_epochs = sum(int(trial.user_attrs.get("epoch", 0)) for trial in trials)

    def count_epochs(self, number: int) -> None:
        """Add epochs of trials to the cost so far.

        Args:
            number: Their number; negative for counted epochs that were lost with a worker, since
                they are trained and counted again.
        """
        self.num_epochs += number

    @property
    def seconds(self) -> float:
        """Time since the studies were opened, and that of earlier starts in which a trial ran."""
        return self.seconds_before + self.clock() - self.started

    def spent(self) -> Ending | None:
        """Return the limit of the whole search that has been reached; None while none has."""
        seconds, epochs = self.config.max_wall_seconds, self.config.max_epochs
        if seconds and self.seconds >= seconds:
            name = "max_wall_seconds"
            return Ending(name, f"search.{name} = {seconds:g} has passed")
        if epochs and self.num_epochs >= epochs:
            return Ending("max_epochs", f"search.max_epochs = {epochs:,} are spent")
        return None


def find_ending(study: TuningStudy, planned: int, budget: Budget) -> Ending | None:
    """Return why a tuning study starts no more trials; None if it starts more."""
    target = budget.config.target_accuracy
    if study.num_started >= planned < budget.config.trials_per_size:
        return Ending("grid", f"all {planned} points of the grid were started")
    if study.num_started >= planned:
        return Ending("trials_per_size", f"all {planned} trials were started")
    if study.num_cut_short and not study.ended_by:
        return None  # started before a limit was reached: uninterrupted, they would have ended
    if target and study.best >= target:
        return Ending("target_accuracy", f"search.target_accuracy = {target:g} was reached")
    if reason := study.given_up(planned):
        return Ending("size_limits", reason)
    return budget.spent()


def span_of(trial: FrozenTrial) -> Span | None:
    """Return when a trial began and ended; None if it has not ended.

    Optuna's times are local, so the clock may be set back during a trial, as at the end of summer
    time. Such a trial counts as having taken no time, not a negative time.
    """
    if trial.datetime_start is None or trial.datetime_complete is None:
        return None
    return trial.datetime_start, max(trial.datetime_start, trial.datetime_complete)


def busy_seconds(spans: Iterable[Span]) -> float:
    """Return the seconds that lie in at least one span."""
    total, reached = 0.0, None
    for start, end in sorted(spans):
        begin = start if reached is None else max(start, reached)
        if end > begin:
            total += (end - begin).total_seconds()
            reached = end
    return total
