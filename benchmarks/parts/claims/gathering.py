"""All finished runs of the benchmark as one result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from krscale.config import Experiment
from krscale.errors import UserError
from krscale.files import write_json
from krscale.report import Curve, read_curve
from krscale.setup.assemble import describe
from parts.claims.cost import steps_per_epoch
from parts.claims.families import FAMILIES, KR, LAYER_WISE, Family, partner
from parts.claims.records import Record
from parts.claims.residual import trace_finals
from parts.claims.scoreboard import (
    GOALS,
    by_size,
    combination_claim,
    gain_claim,
    method_json,
    residual_claim,
    speed_claim,
)
from parts.claims.searching import is_finished, read_records
from parts.measuring import machine

ByDepth = dict[int, list[float]]
"""Residual at every depth, by seed."""


def gather(storage: Path, changes: Sequence[str], command: str) -> dict[str, Any]:
    """Return the results of all families that are finished, in the shape of `claims.json`.

    Args:
        storage: Folder of the runs.
        changes: Overrides of the job for all families.
        command: What the reader would type to repeat it.

    Raises:
        UserError: If the families did not all learn from one teacher.
    """
    curves: list[Curve] = []
    records: list[Record] = []
    unfinished: list[str] = []
    for family in FAMILIES:
        experiment = family.experiment(storage, changes)
        if is_finished(experiment):
            curve, found = read_records(family, experiment)
            curves.append(curve)
            records += found
        else:
            unfinished.append(family.name)
    _check_one_teacher(curves)
    base = FAMILIES[0].experiment(storage, changes)
    plan = describe(base)
    steps = steps_per_epoch(base, plan)
    capacities = [size.capacity for size in plan.sizes]
    sizes = by_size(records, capacities)
    residuals = _residuals(storage, changes)
    unfinished += [f"c1 at {capacity}" for capacity in capacities if capacity not in residuals]
    sections = {"data", "views", "teacher", "student", "ladder", "train", "search"}
    return {
        "command": command,
        "commit": ", ".join(sorted({curve.commit for curve in curves})),
        "machine": machine(torch.device("cpu")),
        "unfinished": unfinished,
        "task": base.model_dump(mode="json", include=sections),
        "teacher": dict(curves[0].teacher) if curves else None,
        "trial_seconds": round(sum(curve.cost.trial_seconds for curve in curves if curve.cost)),
        "seeds": sorted({seed for record in records for seed in record.test}),
        "steps_per_epoch": steps,
        "goals": GOALS,
        "sizes": [
            {
                "capacity": size.capacity,
                "num_parameters": size.num_parameters,
                "flops": size.flops,
                "width": size.width,
                "methods": {
                    label: method_json(record, sizes[size.capacity], steps)
                    for label, record in sizes[size.capacity].items()
                },
            }
            for size in plan.sizes
        ],
        "C1": residual_claim(residuals),
        "C2": speed_claim(sizes, steps),
        "C3": gain_claim(sizes),
        "C4": combination_claim(sizes),
    }


def partners(storage: Path, changes: Sequence[str]) -> list[Family]:
    """Return the searches that C1 needs beside KR's own, one per size; none before KR has run."""
    experiment = _kr().experiment(storage, changes)
    if not is_finished(experiment):
        return []
    num_taps = describe(experiment).num_taps
    _, records = read_records(_kr(), experiment)
    return [partner(r.capacity, r.best, num_taps) for r in records if r.test]


def _residuals(storage: Path, changes: Sequence[str]) -> dict[str, dict[str, ByDepth]]:
    """Return by size, kind and seed the residual at every depth; traced once and kept."""
    winners = _kr().experiment(storage, changes)
    residuals = {}
    for other in partners(storage, changes):
        experiment = other.experiment(storage, changes)
        if is_finished(experiment):
            capacity = experiment.ladder.capacities[0]
            partner_kind, winner_kind = (
                ("layer_wise", "aggregated")
                if other.label == LAYER_WISE
                else ("aggregated", "layer_wise")
            )
            residuals[capacity] = {
                partner_kind: _traced(experiment, experiment, capacity),
                winner_kind: _traced(winners, experiment, capacity),
            }
    return residuals


def _traced(experiment: Experiment, keeper: Experiment, capacity: str) -> ByDepth:
    """Trace the finals of one search at one size, or read what an earlier start kept."""
    kept = keeper.run_path / f"residual-{experiment.name}.json"
    if not kept.exists():
        size = next(r for r in read_curve(experiment.run_path).sizes if r.capacity == capacity)
        write_json(kept, trace_finals(experiment, capacity, size.methods[KR].seeds))
    content = json.loads(kept.read_text(encoding="utf-8"))
    return {int(seed): values for seed, values in content.items()}


def _check_one_teacher(curves: Sequence[Curve]) -> None:
    teachers = {curve.teacher.get("fingerprint", ""): curve.name for curve in curves}
    if len(teachers) > 1:
        raise UserError(
            f"{' and '.join(teachers.values())} learned from different teachers and cannot be "
            f"compared: remove the older run, and start again."
        )


def _kr() -> Family:
    return next(family for family in FAMILIES if family.name == KR)
