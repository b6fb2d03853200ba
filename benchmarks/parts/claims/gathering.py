"""Combine all finished runs of the benchmark into one result."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from krscale.errors import UserError
from krscale.setup.plan import ExperimentPlan, describe
from parts.claims.cost import steps_per_epoch
from parts.claims.families import (
    FAMILIES,
    KR,
    LAYER_WISE,
    Family,
    ablations,
    again,
    partner,
)
from parts.claims.kept import BySeed, Kept, find_kept
from parts.claims.records import Record, merged
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
from parts.claims.tasks import TaskRun
from parts.measuring import machine

_SECTIONS = {"distill", "data", "views", "teacher", "student", "ladder", "train", "search"}


def gather(runs: Sequence[TaskRun], command: str) -> dict[str, Any]:
    """Return the results of all searches that are finished, in the shape of `claims.json`.

    Args:
        runs: The tasks; those whose data is missing are named as not measured.
        command: Command with which a reader can repeat it.

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
    searches, unfinished = _finished(run)
    records = merged([record for kept in searches for record in kept.records])
    _check_one_teacher(searches)
    base = run.experiment(FAMILIES[0])
    plan = _plan(run)
    capacities = [size.capacity for size in plan.sizes]
    sizes = by_size(records, capacities)
    residuals = _residuals(run)
    parts = _without_parts(run)
    without = [f"c1 at {capacity}" for capacity in capacities if capacity not in residuals]
    missing = [pair for pair in _ablations(run) if not find_kept(run, pair[1])]
    without += [f"kr {family.label} at {capacity}" for capacity, family in missing]
    return {
        "name": run.task.name,
        "title": run.task.title,
        "published": run.task.published,
        "commit": ", ".join(sorted({kept.commit for kept in searches})),
        "unfinished": [*unfinished, *without],
        "task": run.described(base.model_dump(mode="json", include=_SECTIONS)),
        "num_train": plan.num_train,
        "teacher": dict(searches[0].teacher) if searches else None,
        "teachers_test_accuracy": sorted({kept.teacher["test_accuracy"] for kept in searches}),
        "trial_seconds": round(sum(kept.trial_seconds for kept in searches)),
        "num_searches": run.num_searches,
        "seeds": sorted({seed for record in records for seed in record.test}),
        "steps_per_epoch": steps_per_epoch(base, plan),
        "sizes": _sizes_json(plan, sizes, steps_per_epoch(base, plan)),
        "C1": residual_claim(residuals),
        "C2": speed_claim(sizes, steps_per_epoch(base, plan)),
        "C3": gain_claim(sizes),
        "C4": combination_claim(sizes),
        "ablations": ablation_json(_whole(run, sizes), parts),
    }


def _finished(run: TaskRun) -> tuple[list[Kept], list[str]]:
    finished: list[Kept] = []
    unfinished: list[str] = []
    for number in range(run.num_searches):
        for family in run.families:
            if number >= run.searches_of(family):
                continue
            if kept := find_kept(run, family, number):
                finished.append(kept)
            else:
                unfinished.append(f"{family.name} (search {number + 1})")
    return finished, unfinished


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


@cache
def _plan(run: TaskRun) -> ExperimentPlan:
    """Return networks and sizes, which all families share; built once, not after every search."""
    return describe(run.experiment(_kr()))


def followers(run: TaskRun) -> list[Family]:
    """Return the families trained with the settings of KR's winners; none before KR has run.

    For the winners of its first search: a partner for C1 at every size, the winners again if they
    were not traced, and KR without each of its parts.
    """
    partners = [family for _, family in _partners(run)]
    return [*partners, *_untraced(run).values(), *(family for _, family in _ablations(run))]


def _partners(run: TaskRun) -> list[tuple[str, Family]]:
    winners = _winners(run)
    num_taps = _plan(run).num_taps if winners else 0
    return [(r.capacity, partner(r.capacity, r.best[0], num_taps)) for r in winners]


def _untraced(run: TaskRun) -> dict[str, Family]:
    """Return, by size, the families that train winners again whose residuals were not kept."""
    kept = find_kept(run, _kr())
    return {
        record.capacity: again(record.capacity, record.best[0])
        for record in _winners(run)
        if kept and record.capacity not in kept.residuals
    }


def _ablations(run: TaskRun) -> list[tuple[str, Family]]:
    distill = run.experiment(_kr()).distill
    return [
        (record.capacity, family)
        for record in _winners(run)
        for family in ablations(record.capacity, record.best[0], distill)
    ]


def _winners(run: TaskRun) -> list[Record]:
    kept = find_kept(run, _kr())
    return [record for record in kept.records if record.test] if kept else []


def _without_parts(run: TaskRun) -> dict[str, dict[str, Record]]:
    found: dict[str, dict[str, Record]] = {}
    for capacity, family in _ablations(run):
        if kept := find_kept(run, family):
            found.setdefault(capacity, {})[family.label] = kept.records[0]
    return found


def _whole(run: TaskRun, sizes: dict[str, dict[str, Record]]) -> dict[str, Record]:
    """Return KR's winners by size; trained again by the code of the ablations where that exists."""
    whole = {capacity: methods[KR] for capacity, methods in sizes.items() if KR in methods}
    for capacity, family in _untraced(run).items():
        if kept := find_kept(run, family):
            whole[capacity] = kept.records[0]
    return whole


def _residuals(run: TaskRun) -> dict[str, dict[str, BySeed]]:
    """Return by size, kind and seed the residual at every depth."""
    untraced = _untraced(run)
    residuals = {}
    for capacity, other in _partners(run):
        kept = find_kept(run, other)
        winners = find_kept(run, untraced.get(capacity, _kr()))
        if winners and kept:
            kinds = ("layer_wise", "aggregated")
            theirs, own = kinds if other.label == LAYER_WISE else kinds[::-1]
            residuals[capacity] = {
                theirs: kept.residuals[capacity],
                own: winners.residuals[capacity],
            }
    return residuals


def _check_one_teacher(searches: Sequence[Kept]) -> None:
    teachers = {kept.teacher.get("fingerprint", ""): kept.name for kept in searches}
    if len(teachers) > 1:
        raise UserError(
            f"{' and '.join(teachers.values())} learned from different teachers and cannot be "
            "compared: remove the run of the older one and its file in benchmarks/results/claims, "
            "and start again."
        )


def _kr() -> Family:
    return next(family for family in FAMILIES if family.name == KR)
