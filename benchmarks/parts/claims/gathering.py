"""All finished runs of the benchmark as one result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from krscale.config import Experiment
from krscale.errors import UserError
from krscale.files import write_json
from krscale.report import Curve, read_curve
from krscale.setup.plan import ExperimentPlan, describe
from parts.claims.cost import steps_per_epoch
from parts.claims.families import FAMILIES, KR, LAYER_WISE, Family, ablations, partner
from parts.claims.records import Record, merged
from parts.claims.residual import trace_finals
from parts.claims.scoreboard import (
    GOALS,
    ablation_json,
    by_size,
    combination_claim,
    gain_claim,
    method_json,
    residual_claim,
    speed_claim,
)
from parts.claims.searching import is_finished, read_records
from parts.claims.tasks import TaskRun
from parts.measuring import machine

ByDepth = dict[int, list[float]]
"""Residual at every depth, by seed."""
_SECTIONS = {"distill", "data", "views", "teacher", "student", "ladder", "train", "search"}


def gather(runs: Sequence[TaskRun], command: str) -> dict[str, Any]:
    """Return the results of all searches that are finished, in the shape of `claims.json`.

    Args:
        runs: The tasks; those whose data is not here are named as not measured.
        command: What the reader would type to repeat it.

    Raises:
        UserError: If the families of a task did not all learn from one teacher.
    """
    return {
        "command": command,
        "machine": machine(torch.device("cpu")),
        "goals": GOALS,
        "tasks": [_gather_task(run) for run in runs if not run.missing_data],
        "not_here": [run.task.name for run in runs if run.missing_data],
    }


def _gather_task(run: TaskRun) -> dict[str, Any]:
    curves, records, unfinished = _finished(run)
    _check_one_teacher(curves)
    base = run.experiment(FAMILIES[0])
    plan = describe(base)
    capacities = [size.capacity for size in plan.sizes]
    sizes = by_size(records, capacities)
    residuals = _residuals(run)
    parts, without = _without_parts(run), [f"c1 at {c}" for c in capacities if c not in residuals]
    return {
        "name": run.task.name,
        "title": run.task.title,
        "published": run.task.published,
        "commit": ", ".join(sorted({curve.commit for curve in curves})),
        "unfinished": [*unfinished, *without],
        "task": run.described(base.model_dump(mode="json", include=_SECTIONS)),
        "num_train": plan.num_train,
        "teacher": dict(curves[0].teacher) if curves else None,
        "trial_seconds": round(sum(curve.cost.trial_seconds for curve in curves if curve.cost)),
        "num_searches": run.num_searches,
        "seeds": sorted({seed for record in records for seed in record.test}),
        "steps_per_epoch": steps_per_epoch(base, plan),
        "sizes": _sizes_json(plan, sizes, steps_per_epoch(base, plan)),
        "C1": residual_claim(residuals),
        "C2": speed_claim(sizes, steps_per_epoch(base, plan)),
        "C3": gain_claim(sizes),
        "C4": combination_claim(sizes),
        "ablations": ablation_json(sizes, parts),
    }


def _finished(run: TaskRun) -> tuple[list[Curve], list[Record], list[str]]:
    curves: list[Curve] = []
    records: list[Record] = []
    unfinished: list[str] = []
    for number in range(run.num_searches):
        for family in FAMILIES:
            experiment = run.experiment(family, number)
            if is_finished(experiment):
                curve, found = read_records(family, experiment)
                curves.append(curve)
                records += found
            else:
                unfinished.append(f"{family.name} (search {number + 1})")
    return curves, merged(records), unfinished


def _sizes_json(
    plan: ExperimentPlan, sizes: dict[str, dict[str, Record]], num_steps: int
) -> list[dict[str, Any]]:
    return [
        {
            "capacity": size.capacity,
            "num_parameters": size.num_parameters,
            "flops": size.flops,
            "width": size.width,
            "methods": {
                label: method_json(record, sizes[size.capacity], num_steps)
                for label, record in sizes[size.capacity].items()
            },
        }
        for size in plan.sizes
    ]


def followers(run: TaskRun) -> list[Family]:
    """Return what is trained with the settings of KR's winners; none before KR has run.

    Of its first search: a partner for C1 at every size, and KR without each of its parts.
    """
    return [family for _, family in _partners(run)] + [f for _, f in _ablations(run)]


def _partners(run: TaskRun) -> list[tuple[str, Family]]:
    experiment = run.experiment(_kr())
    if not is_finished(experiment):
        return []
    num_taps = describe(experiment).num_taps
    return [(r.capacity, partner(r.capacity, r.best[0], num_taps)) for r in _winners(experiment)]


def _ablations(run: TaskRun) -> list[tuple[str, Family]]:
    experiment = run.experiment(_kr())
    if not is_finished(experiment):
        return []
    return [
        (record.capacity, family)
        for record in _winners(experiment)
        for family in ablations(record.capacity, record.best[0], experiment.distill)
    ]


def _winners(experiment: Experiment) -> list[Record]:
    return [record for record in read_records(_kr(), experiment)[1] if record.test]


def _without_parts(run: TaskRun) -> dict[str, dict[str, Record]]:
    found: dict[str, dict[str, Record]] = {}
    for capacity, family in _ablations(run):
        experiment = run.experiment(family)
        if is_finished(experiment):
            (record,) = read_records(family, experiment)[1]
            found.setdefault(capacity, {})[family.label] = record
    return found


def _residuals(run: TaskRun) -> dict[str, dict[str, ByDepth]]:
    """Return by size, kind and seed the residual at every depth; traced once and kept."""
    winners = run.experiment(_kr())
    residuals = {}
    for capacity, other in _partners(run):
        experiment = run.experiment(other)
        if is_finished(experiment):
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
