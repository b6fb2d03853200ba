"""The names of studies, what one trial is, and the interface of listeners to trials."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from krscale.config.fields import is_share, parse_capacity
from krscale.setup.sizes import StudentSize

if TYPE_CHECKING:  # workers import this file, and have no use for Optuna
    from optuna.trial import TrialState

_STUDY_NAME = re.compile(r"([^@\s]+)@(\S+)( final)?(?: #[0-9]+)?")


@dataclass(frozen=True)
class StudyKey:
    """A method at a size, in one of two roles: `TuningKey` or `FinalKey`."""

    kind: ClassVar[str]
    """First part of the names of its trials."""

    method: str
    capacity: str

    @property
    def name(self) -> str:
        """Name of the Optuna study."""
        return f"{self.method}@{self.capacity}"

    def trial_name(self, number: int) -> str:
        """Name of a trial of this study, usable as a path."""
        return f"{self.method}/{self.capacity.replace('/', '-')}/{self.kind}-{number}"


@dataclass(frozen=True)
class TuningKey(StudyKey):
    """The study that searches the settings of a method at a size, e.g. `kr@1/16`."""

    kind: ClassVar[str] = "trial"

    @property
    def finals(self) -> FinalKey:
        """The final trainings of its winner."""
        return FinalKey(self.method, self.capacity)


@dataclass(frozen=True)
class FinalKey(StudyKey):
    """The trainings of that study's winner with fresh seeds, e.g. `kr@1/16 final`."""

    kind: ClassVar[str] = "final"

    @property
    def name(self) -> str:
        """Name of the Optuna study."""
        return f"{super().name} {self.kind}"

    @property
    def tuning(self) -> TuningKey:
        """The study whose winner is trained."""
        return TuningKey(self.method, self.capacity)


def key_of(study_name: str) -> StudyKey:
    """Return the key of an Optuna study, whichever version of it this is (`kr@1/16 final #2`).

    Raises:
        ValueError: If krscale gives no study such a name.

    Example:
        >>> key_of("kr@1/16 final #2")
        FinalKey(method='kr', capacity='1/16')
    """
    found = _STUDY_NAME.fullmatch(study_name)
    if found is None:
        raise ValueError(f"{study_name!r} is the name of no study of krscale, as 'kr@1/16' is")
    method, capacity, final = found.groups()
    if is_share(capacity):
        parse_capacity(capacity)
    return (FinalKey if final else TuningKey)(method, capacity)


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
        self, assignment: Assignment, state: TrialState, metrics: Mapping[str, float], reason: str
    ) -> None:
        """A trial ended: COMPLETE, PRUNED (then with why it was stopped) or FAIL (with the error).

        A trial that was cut short and is run again is FAIL; its text begins with `INTERRUPTED`.
        """
