"""What is handed out and told about: studies, trials, and who hears of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from optuna.trial import TrialState


@dataclass(frozen=True)
class StudyKey:
    """Which study: a method at a rung, while tuning or in the final trainings of its winner."""

    method: str
    capacity: str
    final: bool = False

    @property
    def name(self) -> str:
        """Name of the Optuna study, e.g. `kr@1/16` or `kr@1/16 final`."""
        return f"{self.method}@{self.capacity}" + (" final" if self.final else "")

    def trial_name(self, number: int) -> str:
        """Name of a trial of this study, usable as a path."""
        kind = "final" if self.final else "trial"
        return f"{self.method}/{self.capacity.replace('/', '-')}/{kind}-{number}"


@dataclass(frozen=True)
class Assignment:
    """One trial to run: dotted config values for one student.

    Attributes:
        key: The study it belongs to.
        number: Its number in that study.
        width: The student's capacity dial.
        values: Dotted path of the experiment -> value.
        seed: Of the student's initialisation and sample order.
        continues: Number of the interrupted trial whose checkpoint it goes on from; None starts
            from the beginning.
        alone: Whether it gets a machine for itself, because it ran out of memory beside others.
    """

    key: StudyKey
    number: int
    width: int
    values: Mapping[str, Any]
    seed: int
    continues: int | None = None
    alone: bool = False

    @property
    def name(self) -> str:
        """Stable name of the trial, usable as a path: `kr/1-16/trial-7`, `kr/1-16/final-0`."""
        return self.key.trial_name(self.number)


class Listener(Protocol):
    """Who is told what happens to trials: progress, tracking."""

    def on_start(self, assignment: Assignment) -> None:
        """A trial was handed out."""

    def on_epoch(self, assignment: Assignment, metrics: Mapping[str, float]) -> None:
        """An epoch of a trial ended."""

    def on_end(
        self, assignment: Assignment, state: TrialState, metrics: Mapping[str, float], error: str
    ) -> None:
        """A trial ended: COMPLETE, PRUNED or FAIL (then with the error's text).

        A trial that was cut short and is run again is FAIL; its text begins with `INTERRUPTED`.
        """
