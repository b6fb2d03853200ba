"""The result of a search: the curve, as rows and as a table, and its students."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from krscale.config import Experiment
from krscale.data.reading.pixels import Normalisation
from krscale.errors import UserError, unknown_name
from krscale.models.given import Builder, available
from krscale.progress import Progress
from krscale.report import (
    Candidate,
    Curve,
    Limits,
    curve_table,
    front_headings,
    front_table,
    read_curve,
)
from krscale.report.choice import choose
from krscale.report.result import CURVE_FILE
from krscale.report.table import front_of
from krscale.runs.students import (
    FromPixels,
    data_of_the_run,
    load_final,
    takes_as_given,
    trial_of,
)
from krscale.search.in_python import errors_in_python
from krscale.showing import terminal

_AS_THEY_ARE = Normalisation((0.0,), (1.0,))


@dataclass(frozen=True, repr=False)
class SearchResult:
    """The result of a search; `print(result)` shows the table of accuracy versus capacity.

    Attributes:
        curve: The complete result, as in `curve.json` in the run folder.
        experiment: All settings, given ones and defaults.
        how_to_open: A command and an address that show all trials in MLflow; empty if nothing was
            recorded.
        builders: Builders of the networks that were given as objects.
        normalisation: The normalisation of the given images.
    """

    curve: Curve
    experiment: Experiment
    how_to_open: tuple[str, str] = ("", "")
    builders: Mapping[str, Builder] = field(default_factory=dict)
    normalisation: Normalisation = _AS_THEY_ARE

    @property
    def path(self) -> Path:
        """The run folder: curve, figures, journal of all trials, weights of the students."""
        return self.experiment.run_path

    @property
    def teacher_accuracy(self) -> float:
        """Test accuracy of the teacher."""
        return self.curve.teacher["test_accuracy"]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row for each size and method, from the smallest size, as plain values.

        The keys are `size`, `method`, `num_parameters`, `flops`, `latency_ms`; `val_accuracy` and
        `test_accuracy`, means over the final seeds, and `test_accuracies`, one for each seed
        (shares; None and empty if no trial was finished); `num_trials`; `on_front`, whether no
        other student is better in parameters or validation accuracy and at least as good in the
        other; and `settings`, those of the best trial by dotted path. The rows make a table with
        `pandas.DataFrame(result.rows)`.
        """
        front = front_of(self.curve)
        return [
            {
                "size": size.capacity,
                "method": method,
                **size.size_of(method).model_dump(exclude={"width"}),
                "val_accuracy": found.val_accuracy,
                "test_accuracy": found.test_accuracy,
                "test_accuracies": list(found.test_accuracies),
                "num_trials": found.num_trials,
                "on_front": (size.capacity, method) in front,
                "settings": dict(found.best),
            }
            for size in self.curve.sizes
            for method, found in size.methods.items()
        ]

    def best(self, **wanted: Any) -> dict[str, Any]:
        """Return the row of the student with the best validation accuracy; on a tie the smallest.

        Args:
            **wanted: `size` and `method`, as in the rows; `max_parameters`, `max_flops`,
                `max_latency_ms`: upper limits; `min_accuracy`: return the smallest student with at
                least this validation accuracy.

        Raises:
            UserError: If no student fits, with the nearest ones.
        """
        picked = self._pick(wanted)
        place = picked.size.capacity, picked.method
        return next(row for row in self.rows if (row["size"], row["method"]) == place)

    def load_student(self, **wanted: Any) -> nn.Module:
        """Return the trained student of `best(**wanted)`, in eval mode, on the CPU.

        The student takes images as they were given to the search: floats as the loaders gave them,
        if they gave floats; otherwise, or if the data were named, `[B, C, H, W]` in 0..1. Among the
        final seeds, the one with the best validation accuracy is loaded.

        Args:
            **wanted: As for `best`.

        Raises:
            UserError: As for `best`, or if data or weights are no longer those of the run.
        """
        picked = self._pick(wanted)
        self._refuse_replaced(picked)
        given = self.normalisation
        with available(self.builders), Progress(quiet=True, planned={}) as progress:
            dataset = data_of_the_run(self.experiment, self.curve, progress)
            trial, size = trial_of(self.experiment, picked, dataset)
            student = load_final(self.experiment, trial, dataset, size.width, picked).eval()
        if takes_as_given(student, dataset, given.mean, given.std):
            return student
        return FromPixels(student, dataset, given.mean, given.std).eval()

    def _refuse_replaced(self, picked: Candidate) -> None:
        """Refuse a student whose weights another one has replaced, as the search has gone on.

        Raises:
            UserError: If the present curve of the run does not have this training.
        """
        result, place = picked.result, picked.best_seed
        training = result.seeds[place], result.val_accuracies[place]
        if (self.path / CURVE_FILE).is_file():  # a search that goes on has none
            for size in read_curve(self.path).sizes:
                now = size.methods.get(picked.method)
                if size.capacity != picked.size.capacity or now is None:
                    continue
                trained = zip(now.seeds, now.val_accuracies, strict=True)
                if now.best == result.best and training in trained:
                    return
        raise UserError(
            f"{self.path}: the search may have gone on since this result, and {picked.name} may "
            "be another student now. The same call of krscale.search again returns the present "
            "result."
        )

    def _pick(self, wanted: Mapping[str, Any]) -> Candidate:
        unknown = [name for name in wanted if name not in ("size", "method", *_LIMITS)]
        if unknown:
            raise unknown_name("argument", unknown[0], ("size", "method", *_LIMITS), "result.best")
        curve = self.curve
        if (size := wanted.get("size")) is not None:
            found = tuple(s for s in curve.sizes if s.capacity == size)
            if not found:
                raise unknown_name("size", str(size), [s.capacity for s in curve.sizes], "result")
            curve = curve.model_copy(update={"sizes": found})
        if (method := wanted.get("method")) is not None:
            if method not in curve.methods:
                raise unknown_name("method", str(method), curve.methods, "result")
            sizes = tuple(
                s.model_copy(update={"methods": {method: s.methods[method]}})
                for s in curve.sizes
                if method in s.methods
            )
            curve = curve.model_copy(update={"sizes": sizes})
        with errors_in_python():
            return choose(curve, _limits(wanted)).picked

    def __str__(self) -> str:
        text = io.StringIO()
        console = terminal(file=text, width=_WIDTH, color_system=None)
        console.print(curve_table(self.curve))
        if front_headings(self.curve):
            console.print(front_table(self.curve))
        lines = [line.rstrip() for line in text.getvalue().splitlines()]
        return "\n".join([*lines, f"run folder: {self.path}"])

    __repr__ = __str__


_WIDTH = 100
_LIMITS = {
    "max_parameters": "num_parameters",
    "max_flops": "flops",
    "max_latency_ms": "latency_ms",
    "min_accuracy": "min_accuracy",
}


def _limits(wanted: Mapping[str, Any]) -> Limits:
    given = {name: value for name, value in wanted.items() if name in _LIMITS}
    for name, value in given.items():
        least = 1 if name in ("max_parameters", "max_flops") else 0
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
            expected = f"a number of at least {least}"
        elif name == "max_latency_ms" and value == 0:
            expected = "a number above 0"
        else:
            continue
        raise UserError(f"result: {name}: {expected} is wanted (got {value!r}).")
    limits = {_LIMITS[name]: value for name, value in given.items()}
    return Limits(**limits or {"num_parameters": _NO_LIMIT})


_NO_LIMIT = 2**63
