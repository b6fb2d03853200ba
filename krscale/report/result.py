"""`curve.json`, the machine-readable result of a search: its schema, writing and reading.

Accuracies are shares in [0, 1]. Selection uses validation accuracy only; test accuracies are only
reported.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import Field, field_validator
from typing_extensions import TypedDict

from krscale.config import read_record
from krscale.config.records import Accuracy, Count
from krscale.errors import UserError
from krscale.files import damaged, write_json
from krscale.pareto import pareto_front
from krscale.report.students import CurveSize, Milliseconds, Part

CURVE_FILE = "curve.json"
_PLAIN_NAME = re.compile(r"[A-Za-z0-9.][A-Za-z0-9._+/-]{0,199}")
"""Allowed names of runs, sizes and methods, since file names are made from them."""


class TeacherRecord(TypedDict):
    """The teacher of a search."""

    model: str
    width: int
    num_parameters: int
    flops: int
    val_accuracy: Accuracy
    test_accuracy: Accuracy
    fingerprint: NotRequired[str]


class ParetoEntry(Part):
    """A student that no other student beats in both validation accuracy and parameters."""

    capacity: str
    method: str
    num_parameters: Count
    flops: Count
    latency_ms: Milliseconds
    val_accuracy: Accuracy
    test_accuracy: Accuracy


class Cost(Part):
    """The cost of a search."""

    num_trials: Count
    """Trainings that were started: tuning and final, including stopped and interrupted ones."""
    wall_seconds: Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
    """From the first start to the last end, including pauses."""
    trial_seconds: Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
    """Sum of the durations of all trainings, without those that were running when the search was
    interrupted, whose ends are unknown."""


class Budgets(Part):
    """The budget of a search, as in the config's `search`; 0 means no limit."""

    trials_per_size: Count
    num_final_seeds: Count
    max_wall_seconds: Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
    max_epochs: Count
    target_accuracy: Accuracy


class Curve(Part):
    """Accuracy versus capacity for every method, with its provenance."""

    name: str
    """Name of the run."""
    commit: str
    """Git commit of the code, with `-dirty` appended if the tree had changes."""
    data: dict[str, Any]
    """Source, fingerprint and sizes of the data."""
    teacher: TeacherRecord
    """The teacher of the search."""
    sizes: tuple[CurveSize, ...]
    """The ladder, as configured."""
    pareto: tuple[ParetoEntry, ...]
    """The front, smallest student first; see `find_pareto`."""
    cost: Cost | None = None
    """None in curves of older versions of krscale, which did not record it."""
    budgets: Budgets | None = None
    """None in curves of older versions of krscale, which did not record them."""

    @field_validator("data")
    @classmethod
    def _text_and_numbers(cls, data: dict[str, Any]) -> dict[str, Any]:
        for name, value in data.items():
            if name.startswith("num_") and type(value) is not int:
                raise ValueError(f"{name} is not a whole number (got {value!r})")
            if name in ("source", "fingerprint", "unlabelled") and not isinstance(value, str):
                raise ValueError(f"{name} is not text (got {value!r})")
        return data

    @property
    def num_unlabelled(self) -> int:
        """Number of images without labels that students with a teacher learned from."""
        return int(self.data.get("num_unlabelled", 0))

    @property
    def methods(self) -> tuple[str, ...]:
        """Every method of any size, in order of first appearance."""
        return tuple(dict.fromkeys(name for size in self.sizes for name in size.methods))


def find_pareto(sizes: Sequence[CurveSize]) -> tuple[ParetoEntry, ...]:
    """Return the front over all sizes and methods, smallest student first.

    A student is on the front if no other has at least its mean validation accuracy and at most its
    number of parameters, with one of the two better. The test accuracy is included but not used.
    """
    entries = [
        ParetoEntry(
            capacity=size.capacity,
            method=method,
            **size.size_of(method).model_dump(exclude={"width"}),
            val_accuracy=result.val_accuracy,
            test_accuracy=result.test_accuracy,
        )
        for size in sizes
        for method, result in size.methods.items()
        if result.val_accuracy is not None and result.test_accuracy is not None
    ]
    points = [(entry.val_accuracy, float(entry.num_parameters)) for entry in entries]
    chosen = [entries[i] for i in pareto_front(points, maximise=(True, False))] if points else []
    return tuple(sorted(chosen, key=lambda entry: (entry.num_parameters, entry.method)))


def write_curve(curve: Curve, run_path: Path) -> Path:
    """Write `curve.json` into the run folder, atomically, and return its path."""
    path = run_path / CURVE_FILE
    write_json(path, curve.model_dump(mode="json"))
    return path


def read_curve(run_path: Path) -> Curve:
    """Read the curve of a run.

    Raises:
        UserError: If there is none yet, or its `curve.json` is invalid.
    """
    path = run_path / CURVE_FILE
    if not path.is_file():
        raise UserError(f"{run_path}: no search has finished here: there is no {CURVE_FILE}.")
    rebuild = (
        f"It may be of another version of krscale. Delete it, and the command that ran the search "
        f"makes it again from {run_path / 'journal.log'}."
    )
    curve = read_record(path, Curve, rebuild)
    sizes = [size.capacity for size in curve.sizes]
    for name in (curve.name, *sizes, *(method for size in curve.sizes for method in size.methods)):
        if not _PLAIN_NAME.fullmatch(name) or ".." in name:
            raise damaged(path, f"{name[:80]!r} is no name of a run, size or method", rebuild)
    # Recomputed: older versions chose the front by means that were not rounded.
    return curve.model_copy(update={"pareto": find_pareto(curve.sizes)})
