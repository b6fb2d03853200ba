"""Records as finished searches would leave them, for the tests of the claims."""

from __future__ import annotations

from collections.abc import Sequence

from parts.claims.records import Record

SEEDS = (1000, 1001, 1002)


def record(
    label: str,
    test: Sequence[float],
    val: Sequence[float] | None = None,
    before: float = 0.1,
    capacity: str = "1/4",
) -> Record:
    """Return a record of two epochs: validation `before`, then `val` (by default `test`)."""
    val = test if val is None else val
    return Record(
        label=label,
        capacity=capacity,
        test=dict(zip(SEEDS, test, strict=True)),
        val=dict(zip(SEEDS, val, strict=True)),
        curves={seed: [before, final] for seed, final in zip(SEEDS, val, strict=True)},
        num_trials=6,
        num_pruned=3,
        num_failed=0,
        searches=(SEEDS,),
        best=({"train.learning_rate": 0.1},),
    )
