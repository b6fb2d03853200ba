"""(e) Trials that a search needs, against random search, and the gain by neighbours' settings."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from scipy.stats import t as student_t

from krscale.search.studies.trial_spec import Assignment
from parts.played_ladder import play, search_experiment
from parts.surrogate import Surrogate

REFERENCE_TRIALS = 200
CAP = 1000
"""A search that has not come near after so many trials counts with this number."""
NEAR = 0.005
"""Half a point of accuracy."""
FEW_TRIALS = 8
"""The default budget of a size, where a good first trial matters most."""


def measure_sampling(surrogate: Surrogate, seeds: Sequence[int]) -> dict[str, Any]:
    """Compare the trials needed to come near the best of a long search, for each size.

    With whole trials, as in the reference search, and with krscale's default early stopping, where
    a stopped trial counts as a whole one.
    """
    best = _best(surrogate, "search.sampler=tpe", f"search.trials_per_size={REFERENCE_TRIALS}",
                 "search.seed=1000", "search.early_stopping=none")  # fmt: skip
    found = {
        stopping: _against_random(surrogate, best, seeds, f"search.early_stopping={stopping}")
        for stopping in ("none", "asha")
    }
    ratios = {name: _interval([row["ratio"] for row in rows]) for name, rows in found.items()}
    return {
        "trials_vs_random": ratios["none"],
        "trials_vs_random_with_early_stopping": ratios["asha"],
        "sampling": {
            "reference_trials": REFERENCE_TRIALS, "reference_best": best, "seeds": found,
            "cap": CAP,
        },
    }  # fmt: skip


def _against_random(
    surrogate: Surrogate, best: dict[str, float], seeds: Sequence[int], *changes: str
) -> list[dict[str, Any]]:
    rows = []
    for seed in seeds:
        row = {
            kind: _needed(
                surrogate, best, f"search.sampler={kind}", f"search.seed={seed}", *changes
            )
            for kind in ("tpe", "random")
        }
        rows.append({**row, "ratio": sum(row["tpe"].values()) / sum(row["random"].values())})
        print(f"  {changes[-1]}, seed {seed}: {rows[-1]}", flush=True)
    return rows


def measure_transfer(surrogate: Surrogate, seeds: Sequence[int]) -> dict[str, Any]:
    """Compare the best trial of each size after few trials, with and without transfer."""
    gains = []
    for seed in seeds:
        found = {
            transfer: _best(
                surrogate, f"search.transfer={transfer}", f"search.seed={seed}",
                f"search.trials_per_size={FEW_TRIALS}",
            )
            for transfer in ("true", "false")
        }  # fmt: skip
        gains += [100 * (found["true"][c] - found["false"][c]) for c in found["true"]]
        print(f"  seed {seed}: {found}", flush=True)
    return {
        "transfer_gain_points": round(statistics.mean(gains), 3),
        "transfer": {**_interval(gains), "trials_per_size": FEW_TRIALS, "num_pairs": len(gains)},
    }


def _best(surrogate: Surrogate, *changes: str) -> dict[str, float]:
    """Return the best accuracy of each size after a whole search."""
    best: dict[str, float] = {}

    def on_end(assignment: Assignment, epochs: int, accuracy: float | None) -> bool:
        if accuracy is not None:
            capacity = assignment.key.capacity
            best[capacity] = max(best.get(capacity, 0.0), accuracy)
        return True

    play(surrogate, search_experiment(*changes), on_end)
    return best


def _needed(surrogate: Surrogate, best: dict[str, float], *changes: str) -> dict[str, int]:
    """Return the trials after which each size first came near its best; the cap if it did not."""
    counts = dict.fromkeys(best, 0)
    needed: dict[str, int] = {}

    def on_end(assignment: Assignment, epochs: int, accuracy: float | None) -> bool:
        capacity = assignment.key.capacity
        counts[capacity] += 1
        if accuracy is not None and accuracy >= best[capacity] - NEAR:
            needed.setdefault(capacity, counts[capacity])
        return len(needed) < len(best)

    play(surrogate, search_experiment(*changes, f"search.trials_per_size={CAP}"), on_end)
    return {capacity: needed.get(capacity, CAP) for capacity in best}


def _interval(values: Sequence[float]) -> dict[str, float]:
    """Return mean and 95 % interval."""
    mean = statistics.mean(values)
    spread = statistics.stdev(values) / math.sqrt(len(values))
    half = float(student_t.ppf(0.975, len(values) - 1)) * spread
    return {"mean": round(mean, 3), "low": round(mean - half, 3), "high": round(mean + half, 3)}
