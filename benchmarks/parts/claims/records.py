"""What a finished search says of one method at one size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Record:
    """What one method reached at one size.

    Attributes:
        label: The method, as the results call it.
        capacity: The size.
        test: Test accuracy by seed.
        val: Final validation accuracy by seed.
        curves: Validation accuracy at the end of every epoch, by seed.
        num_trials: Trials of the search, of every state.
        num_pruned: Those that early stopping ended.
        num_failed: Those that ended in an error.
        best: Settings of the winner.
    """

    label: str
    capacity: str
    test: Mapping[int, float]
    val: Mapping[int, float]
    curves: Mapping[int, Sequence[float]]
    num_trials: int
    num_pruned: int
    num_failed: int
    best: Mapping[str, Any]
