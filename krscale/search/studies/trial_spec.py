"""What is handed out and told about: studies, trials, and who hears of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from krscale.setup.sizes import StudentSize

if TYPE_CHECKING:  # workers import this file, and have no use for Optuna
    from optuna.trial import TrialState


@dataclass(frozen=True)
class StudyKey:
    """Which study: a method at a size, while tuning or in the final trainings of its winner."""

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
        name: Its stable name, usable as a path: `kr/1-16/trial-7`, `kr/1-16/final-0`.
        size: The student's size.
        values: Dotted path of the experiment -> value.
        seed: Of the student's initialisation and sample order.
        continues: Name of the interrupted trial whose checkpoint it goes on from; empty starts
            from the beginning.
        alone: Whether it runs while no other does, because it ran out of memory beside others.
        latency_ms: Of its student before training; None unless it is an objective.
    """

    key: StudyKey
    number: int
    name: str
    size: StudentSize
    values: Mapping[str, Any]
    seed: int
    continues: str = ""
    alone: bool = False
    latency_ms: float | None = None


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
