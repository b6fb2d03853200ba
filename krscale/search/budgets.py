"""What ends a search before every study has had its planned trials."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import datetime

from optuna.trial import FrozenTrial

from krscale.config import SearchConfig
from krscale.search.tally import Tally

Span = tuple[datetime, datetime]


class Budget:
    """What tuning may cost, over all starts of a run, and what it has cost.

    Args:
        config: The limits; 0 is none.
        past: Trials of earlier starts that count.
        clock: Seconds; replaced in tests.
    """

    def __init__(
        self,
        config: SearchConfig,
        past: Iterable[FrozenTrial],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        trials = list(past)
        self.config, self.clock = config, clock
        self.started = clock()
        self.seconds_before = busy_seconds(
            (trial.datetime_start, trial.datetime_complete)
            for trial in trials
            if trial.datetime_start is not None and trial.datetime_complete is not None
        )
        self.num_epochs = sum(int(trial.user_attrs.get("epoch", 0)) for trial in trials)

    @property
    def seconds(self) -> float:
        """Time in which at least one trial ran, earlier starts included."""
        return self.seconds_before + self.clock() - self.started

    def spent(self) -> str:
        """Return which limit has been reached, in the user's words; empty while none has."""
        limits = self.config
        if limits.max_wall_seconds and self.seconds >= limits.max_wall_seconds:
            return f"search.max_wall_seconds = {limits.max_wall_seconds:g} has passed"
        if limits.max_epochs and self.num_epochs >= limits.max_epochs:
            return f"search.max_epochs = {limits.max_epochs:,} are spent"
        return ""


def ended_by(tally: Tally, planned: int, budget: Budget) -> str:
    """Return why a tuning study starts no more trials, in the user's words; empty while it does."""
    target = budget.config.target_accuracy
    if tally.num_started >= planned:
        return f"all {planned} trials were started"
    if target and tally.best >= target:
        return f"search.target_accuracy = {target:g} was reached"
    if tally.given_up:
        return "nearly every suggestion broke a limit of the student's size"
    return budget.spent()


def busy_seconds(spans: Iterable[Span]) -> float:
    """Return the seconds that lie in at least one span."""
    total, reached = 0.0, None
    for start, end in sorted(spans):
        begin = start if reached is None else max(start, reached)
        if end > begin:
            total += (end - begin).total_seconds()
            reached = end
    return total
