"""Several searches side by side: the table, CSV, and differences that prevent a comparison."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from krscale.config import Experiment
from krscale.files import write_text
from krscale.report.gains import gains_of_unlabelled
from krscale.report.interval import half_width
from krscale.report.result import Curve
from krscale.report.table import (
    front_of,
    interval_notes,
    new_table,
    seeds_of,
    several_rows,
    span,
    stdout_is_ascii,
    student_rows,
)
from krscale.showing import printable, spreadsheet_text

CSV_COLUMNS = (
    "run", "capacity", "width", "num_parameters", "flops", "latency_ms", "method", "on_front",
    "num_seeds", "val_accuracy", "test_accuracy", "test_half_width", "num_trials", "num_pruned",
    "num_failed", "settings",
)  # fmt: skip


def comparison_table(
    curves: Sequence[Curve],
    *,
    ascii_only: bool | None = None,
    experiments: Sequence[Experiment | None] = (),
) -> Table:
    """Return one table for several runs: a row per run and size, a column per method.

    Args:
        curves: Results of searches, in the order of the rows.
        ascii_only: Use ASCII characters only; None decides by the encoding of stdout.
        experiments: The experiment of each run, None if unknown.
    """
    plain_text = stdout_is_ascii() if ascii_only is None else ascii_only
    plus_minus = "+-" if plain_text else "±"
    methods = list(dict.fromkeys(name for curve in curves for name in curve.methods))
    teachers = [
        f"teacher of {curve.name}: {100 * curve.teacher['test_accuracy']:.1f} %" for curve in curves
    ]
    told = [*differences(curves, experiments), *gains_of_unlabelled(curves)]
    notes = [
        *interval_notes(curves, plus_minus), *teachers, *told, *several_rows(curves),
        "* Pareto front of its run, by validation",
    ]  # fmt: skip
    table = new_table("test accuracy in %", "\n".join(notes), plain_text=plain_text)
    table.add_column("run", overflow="fold")
    for heading in ("size", "params", "FLOPs", "ms"):
        table.add_column(heading, justify="right", overflow="fold")
    for method in methods:
        table.add_column(method, justify="left", overflow="fold")
    for curve in curves:
        front = front_of(curve)
        rows = [
            row for size in curve.sizes for row in student_rows(size, methods, front, plus_minus)
        ]
        for number, row in enumerate(rows):
            table.add_row(Text(curve.name if number == 0 else ""), *row)
    return table


def differences(
    curves: Sequence[Curve], experiments: Sequence[Experiment | None] = ()
) -> list[str]:
    """Return sentences on differences that make the runs hard to compare; empty if there are none.

    Args:
        curves: Results of searches.
        experiments: The experiment of each run, None if unknown; empty if all are unknown.
    """
    asked = experiments or [None] * len(curves)
    epochs = [None if given is None else str(given.train.num_epochs) for given in asked]
    found = []
    for what, values in (
        ("data", [curve.data.get("fingerprint") for curve in curves]),
        ("images without labels", [_unlabelled(curve) for curve in curves]),
        ("teachers", [curve.teacher.get("fingerprint") for curve in curves]),
        ("commits of krscale", [_short(curve.commit) for curve in curves]),
        ("numbers of epochs per training", epochs),
        ("numbers of trials per student", [_trials(curve) for curve in curves]),
        ("numbers of seeds per student", [span(seeds_of(curve)) for curve in curves]),
        ("budgets of the search", [_budget(curve) for curve in curves]),
    ):
        unknown = [curve.name for curve, value in zip(curves, values, strict=True) if not value]
        if len({value for value in values if value}) > 1:
            listed = ", ".join(
                f"{curve.name} {value or 'not known'}"
                for curve, value in zip(curves, values, strict=True)
            )
            found.append(f"different {what}: {listed}")
        elif unknown and what in _NEEDED and len(curves) > 1:
            found.append(f"not known whether the {what} differ: no fingerprint in {_and(unknown)}")
    return found


_NEEDED = ("data", "teachers")
"""If these differ, accuracies cannot be used to compare methods."""


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def write_csv(curves: Sequence[Curve], path: Path) -> None:
    """Write every student of every run as one row, accuracies as shares in [0, 1]."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for curve in curves:
        for size in curve.sizes:
            for method, result in size.methods.items():
                row = {
                    "run": spreadsheet_text(printable(curve.name)),
                    "capacity": spreadsheet_text(printable(size.capacity)),
                    **size.size_of(method).model_dump(),
                    "method": spreadsheet_text(printable(method)),
                    "on_front": int((size.capacity, method) in front_of(curve)),
                    "num_seeds": len(result.seeds),
                    "test_half_width": half_width(result.test_accuracies),
                    **result.model_dump(include=set(CSV_COLUMNS)),
                    "settings": json.dumps(result.best, sort_keys=True),
                }
                writer.writerow(row)
    write_text(path, text.getvalue())


def _unlabelled(curve: Curve) -> str:
    if not curve.num_unlabelled:
        return "none"
    return f"{curve.num_unlabelled:,} ({str(curve.data.get('unlabelled', ''))[:8]})"


def _short(commit: str) -> str:
    found, dash, mark = commit.partition("-")
    return found[:8] + dash + mark


def _trials(curve: Curve) -> str:
    return span({r.num_trials for size in curve.sizes for r in size.methods.values()})


def _budget(curve: Curve) -> str:
    """Return the limits of a search under the names of its settings, without trials and seeds."""
    if curve.budgets is None:
        return ""
    limits = curve.budgets.model_dump(exclude={"trials_per_size", "num_final_seeds"})
    given = [f"{name} {value:g}" for name, value in limits.items() if value]
    return " and ".join(given) or "without limits"
