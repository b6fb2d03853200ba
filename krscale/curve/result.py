"""`curve.json`, the machine-readable result of a search: its shape, writing and reading.

Accuracies are shares in [0, 1]. Selection uses validation accuracy only; test accuracies are there
to be read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import TypedDict

from krscale.errors import UserError, nearest
from krscale.files import write_json
from krscale.pareto import pareto_front

CURVE_FILE = "curve.json"
_NOT_RUNS = frozenset({"cache", "mlartifacts", "mlruns", "reports"})

Accuracy = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=0)]
Milliseconds = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Teacher(TypedDict):
    """The model the knowledge came from."""

    model: str
    width: int
    num_parameters: int
    flops: int
    val_accuracy: float
    test_accuracy: float
    fingerprint: NotRequired[str]


class MethodResult(_Part):
    """What one method reached at one rung: its winner, trained again with fresh seeds."""

    test_accuracy: Accuracy | None
    """Mean over the seeds; None when no trial of the method finished at this rung."""
    test_accuracies: tuple[Accuracy, ...]
    """One per seed."""
    val_accuracy: Accuracy | None
    """Mean over the seeds."""
    val_accuracies: tuple[Accuracy, ...]
    """One per seed."""
    seeds: tuple[int, ...]
    """Seeds of the final trainings, in the order of the accuracies."""
    num_trials: Count
    """Trials of the search, of every state."""
    num_pruned: Count
    """Trials that early stopping ended."""
    num_failed: Count
    """Trials that ended in an error or a NaN."""
    best: dict[str, Any]
    """Settings of the winner: dotted path of the experiment -> value."""

    @classmethod
    def over_seeds(
        cls,
        *,
        seeds: Sequence[int],
        val_accuracies: Sequence[float],
        test_accuracies: Sequence[float],
        num_trials: int,
        num_pruned: int,
        num_failed: int,
        best: dict[str, Any],
    ) -> MethodResult:
        """Build the result from one accuracy per seed; the means are taken here."""
        return cls(
            test_accuracy=_mean(test_accuracies),
            test_accuracies=tuple(test_accuracies),
            val_accuracy=_mean(val_accuracies),
            val_accuracies=tuple(val_accuracies),
            seeds=tuple(seeds),
            num_trials=num_trials,
            num_pruned=num_pruned,
            num_failed=num_failed,
            best=best,
        )

    @model_validator(mode="after")
    def _consistent(self) -> MethodResult:
        lengths = {len(self.seeds), len(self.val_accuracies), len(self.test_accuracies)}
        if len(lengths) != 1:
            raise ValueError("one val and one test accuracy per seed are needed")
        for mean, values in (
            (self.test_accuracy, self.test_accuracies),
            (self.val_accuracy, self.val_accuracies),
        ):
            expected = _mean(values)
            if (mean is None) != (expected is None):
                raise ValueError("a mean without values, or values without a mean")
            if mean is not None and expected is not None and abs(mean - expected) > 1e-6:
                raise ValueError(f"{mean} is not the mean of {list(values)}")
        return self


class Rung(_Part):
    """One student size."""

    capacity: str
    """Share of the teacher's parameters that was asked for, e.g. `"1/16"`."""
    width: Count
    """The student's capacity dial."""
    num_parameters: Count
    """Parameters of the student alone."""
    flops: Count
    """Operations of one forward pass of one image, two per multiply-add."""
    latency_ms: Milliseconds
    """Median milliseconds of one forward pass of one image on one CPU thread."""
    methods: dict[str, MethodResult]
    """Result by method name."""


class ParetoEntry(_Part):
    """A student that no other beats both in validation accuracy and in parameters."""

    capacity: str
    method: str
    num_parameters: Count
    flops: Count
    latency_ms: Milliseconds
    val_accuracy: Accuracy
    test_accuracy: Accuracy


class Cost(_Part):
    """What a search took."""

    num_trials: Count
    """Trainings that were started: tuning and final, early stopped and interrupted ones too."""
    wall_seconds: Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
    """From the first start to the last end, pauses included."""
    trial_seconds: Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
    """Sum over all trainings of how long each took."""


class Curve(_Part):
    """Accuracy versus capacity for every method, and where it came from."""

    name: str
    """Name of the run."""
    commit: str
    """Git commit of the code that ran, `-dirty` appended when the tree had changes."""
    data: dict[str, Any]
    """Source, fingerprint and sizes of the data."""
    teacher: Teacher
    """The model the knowledge came from."""
    rungs: tuple[Rung, ...]
    """The ladder, as configured."""
    pareto: tuple[ParetoEntry, ...]
    """The front, smallest student first; see `find_pareto`."""
    cost: Cost | None = None
    """None in curves of krscale before it was kept."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Every method of any rung, in order of first appearance."""
        return tuple(dict.fromkeys(name for rung in self.rungs for name in rung.methods))


def find_pareto(rungs: Sequence[Rung]) -> tuple[ParetoEntry, ...]:
    """Return the front over all rungs and methods, smallest student first.

    A student is on the front when none has both at least its mean validation accuracy and at most
    its parameters. The test accuracy is carried along, never consulted.
    """
    entries = [
        ParetoEntry(
            capacity=rung.capacity,
            method=method,
            num_parameters=rung.num_parameters,
            flops=rung.flops,
            latency_ms=rung.latency_ms,
            val_accuracy=result.val_accuracy,
            test_accuracy=result.test_accuracy,
        )
        for rung in rungs
        for method, result in rung.methods.items()
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
        UserError: If there is no such run, it has no curve yet, or its `curve.json` is not one.
    """
    path = run_path / CURVE_FILE
    if not path.is_file():
        raise _no_curve(run_path)
    try:
        return Curve.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: not a curve of this version of krscale: {_first(error)}"
        ) from None


def _no_curve(run_path: Path) -> UserError:
    """Say what is missing, and which runs beside it could be read instead."""
    storage = run_path.parent
    folders = sorted(p for p in storage.iterdir() if p.is_dir()) if storage.is_dir() else []
    runs = [p for p in folders if p.name not in _NOT_RUNS and not p.name.startswith(".")]
    finished = [p.name for p in runs if (p / CURVE_FILE).is_file()]
    unfinished = [p.name for p in runs if p.name not in finished]
    if run_path.is_dir():
        problem = f"{run_path}: no {CURVE_FILE} in this run; its search has not finished."
    else:
        guess = nearest(run_path.name, finished + unfinished)
        hint = f" Did you mean {guess!r}?" if guess else ""
        problem = f"{run_path}: no such run.{hint}"
    return UserError(
        f"{problem} Runs with a curve in {storage}: {', '.join(finished) or 'none'};"
        f" without one: {', '.join(unfinished) or 'none'}."
    )


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        problem = error.errors(include_url=False)[0]
        return f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
    return str(error)


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
