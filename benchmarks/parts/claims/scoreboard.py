"""Judge the four claims from records, as the JSON from which page and figures are made. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from parts.claims.families import (
    COMBINED,
    KR,
    OPPONENTS,
    POSTERIORS,
    WITHOUT_SPARSITY,
)
from parts.claims.measures import (
    Interval,
    Spread,
    Verdict,
    both,
    deepest_third,
    differences,
    overall,
    speed,
    steps_to_final,
)
from parts.claims.records import Record

GOALS = {
    "C1": {"deepest_third_reduction": 0.30},
    "C2": {"steps_to_kd": 0.60, "steps_to_plain": 0.40},
    "C3": {"gain_over_best_opponent": 0.01},
    "C4": {"gain": 0.0},
}
REFERENCES = ("plain", "kd")
"""Methods whose final accuracy is the target in C2."""

SizeRecords = Mapping[str, Record]
"""The records of one size, by label."""
Json = dict[str, Any]


def by_size(records: Sequence[Record], capacities: Sequence[str]) -> dict[str, dict[str, Record]]:
    """Sort records by size, in the order of the capacities; those without a final are left out."""
    return {
        capacity: {r.label: r for r in records if r.capacity == capacity and r.test}
        for capacity in capacities
    }


def method_json(record: Record, size: SizeRecords, steps_per_epoch: int) -> Json:
    """Return the results of a method at a size, including every seed's numbers."""
    seeds = sorted(record.test)
    content: Json = {
        "test_accuracy": [record.test[seed] for seed in seeds],
        "val_accuracy": [record.val[seed] for seed in seeds],
        "num_trials": record.num_trials,
        "num_pruned": record.num_pruned,
        "num_failed": record.num_failed,
    }
    for name in REFERENCES:
        if name in size:
            steps = steps_to_final(record.curves, size[name].curves, steps_per_epoch)
            content[f"steps_to_{name}"] = [
                None if found is None else round(found, 1) for found in steps.values()
            ]
    content["searches"] = [
        {"seeds": list(found), "best": dict(best)}
        for found, best in zip(record.searches, record.best, strict=True)
    ]
    content["val_curves"] = [[round(v, 4) for v in record.curves[seed]] for seed in seeds]
    return content


def residual_claim(residuals: Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]]) -> Json:
    """Judge C1.

    Args:
        residuals: By size, then `layer_wise` and `aggregated`, then seed: mean divergence of the
            student from the teacher at each depth, shallowest first.
    """
    reductions: list[Json] = []
    for capacity, pair in residuals.items():
        layer_wise, aggregated = pair["layer_wise"], pair["aggregated"]
        found = [
            1.0 - deepest_third(aggregated[seed]) / deepest_third(layer_wise[seed])
            for seed in sorted(layer_wise.keys() & aggregated.keys())
        ]
        interval = Interval.over(found)
        reductions.append(
            {
                "capacity": capacity,
                **interval.to_json(),
                "verdict": interval.above(0.0),
                "goal_met": _met(interval.above(0.0), interval.mean >= 0.30),
                "reductions": [round(value, 4) for value in found],
            }
        )
    by_depth = {
        capacity: {
            kind: [[round(r, 5) for r in by_seed[seed]] for seed in sorted(by_seed)]
            for kind, by_seed in pair.items()
        }
        for capacity, pair in residuals.items()
    }
    return {
        "residual_by_depth": by_depth,
        "deepest_third_reduction": reductions,
        "verdict": overall([entry["verdict"] for entry in reductions]),
    }


def speed_claim(sizes: Mapping[str, SizeRecords], steps_per_epoch: int) -> Json:
    """Judge C2: steps to the final accuracy of KD and plain, and what sparsity changes."""
    entries: list[Json] = []
    for capacity, size in sizes.items():
        entry: Json = {"capacity": capacity}
        for label in (KR, WITHOUT_SPARSITY):
            if label in size:
                entry[label] = {
                    f"steps_to_{name}": _race(size[label], size[name], name, steps_per_epoch)
                    for name in REFERENCES
                    if name in size
                }
        if KR in size and WITHOUT_SPARSITY in size:
            entry["accuracy_gained_by_sparsity"] = _gain(
                size[KR], size[WITHOUT_SPARSITY], spread_of(size)
            )
        entries.append(entry)
    verdicts = {
        name: overall(
            [
                entry[KR][f"steps_to_{name}"]["verdict"]
                for entry in entries
                if f"steps_to_{name}" in entry.get(KR, {})
            ]
        )
        for name in REFERENCES
    }
    return {"sizes": entries, "verdict": verdicts}


def gain_claim(sizes: Mapping[str, SizeRecords]) -> Json:
    """Judge C3: KR against the opponent that was best on validation, and against each."""
    best: list[Json] = []
    each: list[Json] = []
    family: list[Json] = []
    for capacity, size in sizes.items():
        opponents = [name for name in OPPONENTS if name in size]
        if KR not in size or not opponents:
            continue
        opponent = best_on_validation(size, opponents)
        spread = spread_of(size)
        gain = _gain(size[KR], size[opponent], spread)
        gain["goal_met"] = _met(gain["verdict"], gain["mean"] >= 0.01)
        best.append({"capacity": capacity, "opponent": opponent, **gain})
        each.append(
            {
                "capacity": capacity,
                "gain": {name: _gain(size[KR], size[name], spread) for name in opponents},
            }
        )
        ours = best_on_validation(
            size, [name for name in (KR, WITHOUT_SPARSITY, *COMBINED) if name in size]
        )
        family.append(
            {
                "capacity": capacity,
                "method": ours,
                "opponent": opponent,
                **_gain(size[ours], size[opponent], spread),
            }
        )
    return {
        "gain_over_best_opponent": best,
        "gain_over_each": each,
        "gain_of_best_kr_variant": family,
        "verdict": overall([entry["verdict"] for entry in best]),
    }


def combination_claim(sizes: Mapping[str, SizeRecords]) -> Json:
    """Judge C4: KR with each method on the logits against that method alone."""
    content: Json = {}
    for name in POSTERIORS:
        entries = [
            {"capacity": capacity, **_gain(size[f"{KR}+{name}"], size[name], spread_of(size))}
            for capacity, size in sizes.items()
            if f"{KR}+{name}" in size and name in size
        ]
        if entries:
            verdict = overall([entry["verdict"] for entry in entries])
            content[name] = {"gain": entries, "verdict": verdict}
    verdicts = [entry["verdict"] for found in content.values() for entry in found["gain"]]
    return {"methods": content, "verdict": overall(verdicts).replace("size", "pair")}


def spread_of(size: SizeRecords) -> Spread | None:
    """Return the spread of the searches of one method at a size, pooled over all its methods."""
    return Spread.over([record.search_means for record in size.values()])


def ablation_json(winners: SizeRecords, parts: Mapping[str, SizeRecords]) -> list[Json]:
    """Return what KR loses without each of its parts.

    Args:
        winners: KR's, by size.
        parts: KR's winner without a part, by size and then the part's name.
    """
    return [
        {"capacity": capacity, "part": name, **_gain(winners[capacity], without, None)}
        for capacity, found in parts.items()
        for name, without in found.items()
        if capacity in winners
    ]


def best_on_validation(size: SizeRecords, names: Sequence[str]) -> str:
    """Return the method with the best mean validation accuracy; the test split is not used."""

    def mean(name: str) -> float:
        values = size[name].val.values()
        return math.fsum(values) / len(values) if values else -math.inf

    return max(names, key=mean)


def _race(ours: Record, theirs: Record, name: str, steps_per_epoch: int) -> Json:
    found = speed(ours.curves, theirs.curves, steps_per_epoch)
    goal = GOALS["C2"][f"steps_to_{name}"]
    met = _met(found.verdict, found.interval.mean <= goal)
    return {**found.to_json(), "verdict": found.verdict, "goal_met": met}


def _gain(ours: Record, theirs: Record, spread: Spread | None) -> Json:
    gains = differences(ours.test, theirs.test)
    interval = Interval.over(gains)
    verdict, over_searches = interval.above(0.0), None
    num_searches = min(len(ours.searches), len(theirs.searches))
    if spread is not None and num_searches > 1:
        other = spread.around(interval.mean, num_searches)
        over_searches, verdict = other.to_json(), both(verdict, other.above(0.0))
    return {
        **interval.to_json(),
        "over_searches": over_searches,
        "verdict": verdict,
        "differences": [round(gain, 5) for gain in gains],
    }


def _met(verdict: Verdict, far_enough: bool) -> bool:
    return verdict == "holds" and far_enough
