"""The front of a search with several objectives: trials that no other beats in all, as a table.

Such a trial was trained once and evaluated on validation. The first of each study is its winner,
which was trained again with fresh seeds and is shown by the curve.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from krscale.metrics import VAL_ACCURACY, val_metrics
from krscale.report.result import Curve
from krscale.report.table import new_table, short_number, stdout_is_ascii

FRONT_TITLE = "The front of every study"
FRONT_CAPTION = (
    "Trials that no other trial of the same size and method beats in all objectives: one training "
    "each, judged on validation. The first of each was trained again, and is what the curve shows. "
    "All their settings are in curve.json."
)
_HEADINGS = {
    VAL_ACCURACY: "validation %",
    "num_parameters": "params",
    "flops": "FLOPs",
    "latency_ms": "ms",
}


def front_headings(curve: Curve) -> list[str]:
    """Return the headings of the columns; empty if the search had a single objective."""
    names = next(
        (list(r.front[0].objectives) for size in curve.sizes for r in size.methods.values()
         if r.front), [],
    )  # fmt: skip
    return ["size", "method", *map(_heading, names), "student"] if names else []


def front_rows(curve: Curve) -> list[list[str]]:
    """Return one row for every trial on the front of its study, the smallest size first."""
    return [
        [
            size.capacity,
            method,
            *(_number(name, value) for name, value in found.objectives.items()),
            _architecture(found.settings),
        ]
        for size in curve.sizes
        for method, result in size.methods.items()
        for found in result.front
    ]


def front_table(curve: Curve, *, ascii_only: bool | None = None) -> Table:
    """Return the rows as a table for a terminal."""
    plain_text = stdout_is_ascii() if ascii_only is None else ascii_only
    table = new_table(FRONT_TITLE, FRONT_CAPTION, plain_text=plain_text)
    for heading in front_headings(curve):
        is_number = heading not in ("size", "method", "student")
        table.add_column(heading, justify="right" if is_number else "left", overflow="fold")
    for row in front_rows(curve):
        table.add_row(*row)
    return table


def _heading(objective: str) -> str:
    metric = val_metrics().get(objective)
    unit = " %" if metric and metric.shown == "percent" else ""
    return _HEADINGS.get(objective, f"{objective}{unit}")


def _number(objective: str, value: float) -> str:
    if metric := val_metrics().get(objective):
        return metric.text(value)
    return f"{value:.2f}" if objective == "latency_ms" else short_number(value)


def _architecture(settings: Mapping[str, Any]) -> str:
    parts: list[str] = []
    for path, value in settings.items():
        if path == "student.model":
            parts.insert(0, str(value))
        elif path.startswith("student."):
            parts.append(f"{path.rpartition('.')[2]}={value}")
    return " ".join(parts)
