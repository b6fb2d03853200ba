"""The small file that a finished search leaves, which replaces the folder of its run.

`benchmarks/results/claims/TASK-FAMILY-NUMBER.json` is committed, so that a run on another machine,
or after its working folder was lost, continues where the last one ended.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from krscale.config import Experiment
from krscale.files import read_json, write_json
from parts.claims.families import Family
from parts.claims.records import Record
from parts.claims.residual import trace_finals
from parts.claims.searching import is_finished, read_records
from parts.claims.tasks import TaskRun

_DIGITS = 5

BySeed = Mapping[int, Sequence[float]]


@dataclass(frozen=True)
class Kept:
    """A finished search.

    Attributes:
        name: Name of its run.
        commit: Commit on which it ran.
        teacher: Facts about the teacher.
        trial_seconds: Seconds of all its trainings.
        records: One for each method and size.
        residuals: By size and seed, how far KR's final students are from the teacher at each
            depth; empty if the task does not need it.
    """

    name: str
    commit: str
    teacher: Mapping[str, Any]
    trial_seconds: float
    records: tuple[Record, ...]
    residuals: Mapping[str, BySeed] = field(default_factory=dict)


def find_kept(run: TaskRun, family: Family, number: int = 0) -> Kept | None:
    """Return the file of a finished search; None if exactly this search is not finished.

    If a search has just ended, the folder of its run is read, and the file is written.
    """
    path, key = run.record_path(family, number), run.key(family, number)
    if path.is_file():
        content = read_json(path)
        if content["key"] == key:
            return _from_json(content)
    experiment = run.experiment(family, number)
    if not is_finished(experiment):
        return None
    kept = _of_run(run, family, number, experiment)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"key": key, **_to_json(kept)})
    return kept


def _of_run(run: TaskRun, family: Family, number: int, experiment: Experiment) -> Kept:
    curve, records = read_records(family, experiment)
    # Only the winners of KR's first search are traced.
    traced = family.traced and number == 0
    return Kept(
        experiment.name,
        curve.commit,
        dict(curve.teacher),
        round(curve.cost.trial_seconds, 1) if curve.cost else 0.0,
        tuple(records),
        {r.capacity: trace_finals(experiment, r.capacity, tuple(r.test)) for r in records if r.test}
        if traced
        else {},
    )


def _to_json(kept: Kept) -> dict[str, Any]:
    return {
        **asdict(kept),
        "records": [
            {**asdict(record), "curves": _rounded(record.curves)} for record in kept.records
        ],
        "residuals": {size: _rounded(by_seed) for size, by_seed in kept.residuals.items()},
    }


def _from_json(content: Mapping[str, Any]) -> Kept:
    return Kept(
        content["name"],
        content["commit"],
        content["teacher"],
        content["trial_seconds"],
        tuple(_record(record) for record in content["records"]),
        {
            size: {int(seed): json.loads(values) for seed, values in by_seed.items()}
            for size, by_seed in content["residuals"].items()
        },
    )


def _record(content: Mapping[str, Any]) -> Record:
    by_seed = {
        name: {int(seed): value for seed, value in content[name].items()}
        for name in ("test", "val", "curves")
    }
    by_seed["curves"] = {seed: json.loads(text) for seed, text in by_seed["curves"].items()}
    searches = tuple(tuple(seeds) for seeds in content["searches"])
    return Record(**{**content, **by_seed, "searches": searches, "best": tuple(content["best"])})


def _rounded(by_seed: BySeed) -> dict[int, str]:
    """Return curves as text, one line per seed: one line per number would fill most of the file."""
    return {
        seed: json.dumps([round(value, _DIGITS) for value in values])
        for seed, values in by_seed.items()
    }
