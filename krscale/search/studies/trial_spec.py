"""The names of studies, the specification of one trial, and the interface of trial listeners."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from krscale.config.fields import is_share, parse_capacity
from krscale.setup.sizes import StudentSize

if TYPE_CHECKING:  # workers import this file but do not need Optuna
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
        """The key of the final trainings of its winner."""
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
        """The key of the study whose winner is trained."""
        return TuningKey(self.method, self.capacity)


def key_of(study_name: str) -> StudyKey:
    """Return the key of an Optuna study, of any version of the study (`kr@1/16 final #2`).

    Raises:
        ValueError: If no study of krscale can have this name.

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
        key: The study that the trial belongs to.
        number: The trial's number in that study.
        name: The trial's stable name, usable as a path: `kr/1-16/trial-7`, `kr/1-16/final-0`.
        size: The student's size.
        values: Dotted path of the experiment -> value.
        seed: Seed of the student's initialisation and sample order.
        continues: Name of the interrupted trial whose checkpoint it continues from; if empty, it
            starts from the beginning.
        alone: Whether it runs without other trials, because it ran out of memory beside others.
        latency_ms: Latency of its student before training; None unless it is an objective.
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
    """Interface for progress and tracking, which are called when something happens to a trial."""

    def on_start(self, assignment: Assignment) -> None:
        """A trial was handed out."""

    def on_epoch(self, assignment: Assignment, metrics: Mapping[str, float]) -> None:
        """An epoch of a trial ended."""

    def on_end(
        self, assignment: Assignment, state: TrialState, metrics: Mapping[str, float], reason: str
    ) -> None:
        """A trial ended: COMPLETE, PRUNED (then with why it was stopped) or FAIL (with the error).

        A trial that was interrupted and is run again is FAIL; its reason begins with `INTERRUPTED`.
        """
