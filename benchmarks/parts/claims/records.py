"""The results of finished searches for one method at one size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Record:
    """Results of one method at one size, over all its searches.

    Attributes:
        label: Name of the method in the results.
        capacity: The size.
        test: Test accuracy by seed.
        val: Final validation accuracy by seed.
        curves: Validation accuracy at the end of every epoch, by seed.
        num_trials: Trials of the searches, of every state.
        num_pruned: Those that early stopping ended.
        num_failed: Those that ended in an error.
        searches: Seeds of the final trainings of each search.
        best: Settings of the winner of each search.
    """

    label: str
    capacity: str
    test: Mapping[int, float]
    val: Mapping[int, float]
    curves: Mapping[int, Sequence[float]]
    num_trials: int
    num_pruned: int
    num_failed: int
    searches: tuple[tuple[int, ...], ...]
    best: tuple[Mapping[str, Any], ...]

    @property
    def search_means(self) -> list[float]:
        """Mean test accuracy of each search's winner."""
        return [math.fsum(self.test[s] for s in seeds) / len(seeds) for seeds in self.searches]


def merged(records: Sequence[Record]) -> list[Record]:
    """Return one record for each method and size, with all its searches in their order."""
    found: dict[tuple[str, str], Record] = {}
    for record in records:
        key = (record.label, record.capacity)
        found[key] = _joined(found[key], record) if key in found else record
    return list(found.values())


def _joined(one: Record, other: Record) -> Record:
    return Record(
        one.label,
        one.capacity,
        {**one.test, **other.test},
        {**one.val, **other.val},
        {**one.curves, **other.curves},
        one.num_trials + other.num_trials,
        one.num_pruned + other.num_pruned,
        one.num_failed + other.num_failed,
        one.searches + other.searches,
        one.best + other.best,
    )
