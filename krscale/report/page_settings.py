"""Sections of the page: the winning settings by size, and whether the search was long enough."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from krscale.report.convergence import draw_convergence, epochs_needed, trials_needed
from krscale.report.findings import Insight, StudyInsight
from krscale.report.rendering import Table, texts
from krscale.report.result import Curve
from krscale.report.students import MethodResult

_SHOWN_APART = {"distill.granularity": "granularity", "distill.sparsity": "sparsity"}
_TEXTS = ("size", "method")


@dataclass(frozen=True)
class Convergence:
    """Whether a search and its trainings were long enough, as a PNG and a table."""

    figure: bytes
    table: Table


def winning_settings(curve: Curve, insight: Insight | None) -> Table | None:
    """Return the winning granularity and sparsity at each size; None if neither was searched.

    Args:
        curve: The result.
        insight: Results on all trials; None if only the winners are known.
    """
    won = [(capacity, method, r) for capacity, method, r in _results(curve) if _varied(r)]
    if not won:
        return None
    rows = [_won(*entry, insight.study(entry[1], entry[0]) if insight else None) for entry in won]
    most = max(len(row) for row in rows)  # a study without insight has fewer columns
    headings = next(list(row) for row in rows if len(row) == most)
    cells = [texts([row.get(name, "-") for name in headings], len(_TEXTS)) for row in rows]
    return Table(headings, cells, num_text=len(_TEXTS))


def other_settings(curve: Curve) -> Table:
    """Return the winners' values of all other settings."""
    won = [entry for entry in _results(curve) if entry[2].best]
    names = sorted({n for _, _, r in won for n in r.best if n not in _SHOWN_APART})
    rows = [
        texts([capacity, method, *(_value(r.best.get(n, "")) for n in names)], 2)
        for capacity, method, r in won
    ]
    shown = [name.removeprefix("distill.").removeprefix("train.") for name in names]
    return Table(("size", "method", *shown), rows, num_text=2)


def convergence(curve: Curve, insight: Insight | None) -> Convergence | None:
    """Return whether more trials or epochs might have helped; None if unknown.

    Args:
        curve: The result.
        insight: Results on all trials.
    """
    figure = draw_convergence(insight) if insight else None
    if insight is None or figure is None:
        return None
    rows = [
        texts(
            [
                capacity, method, _of(trials_needed(study), len(study.best_so_far)),
                _of(epochs_needed(study), len(study.learning)),
            ],
            2,
        )
        for capacity, method, _ in _results(curve)
        if (study := insight.study(method, capacity))
    ]  # fmt: skip
    return Convergence(figure, Table(("size", "method", "trials", "epochs"), rows, num_text=2))


def _results(curve: Curve) -> Iterator[tuple[str, str, MethodResult]]:
    for method in curve.methods:
        for size in curve.sizes:
            if result := size.methods.get(method):
                yield size.capacity, method, result


def _varied(result: MethodResult) -> bool:
    return any(name in result.best for name in _SHOWN_APART)


def _won(
    capacity: str, method: str, result: MethodResult, study: StudyInsight | None
) -> dict[str, str]:
    row = {"size": capacity, "method": method}
    for name, title in _SHOWN_APART.items():
        row[title] = _value(result.best.get(name, "-"))
        if study:
            row[f"near-best {title}"] = _range(study.near_best.get(name, []))
    if study:
        row["whole trials"] = str(study.num_complete)
    return row


def _range(values: Sequence[Any]) -> str:
    if not values:
        return ""
    if isinstance(values[0], str):
        return ", ".join(values)
    low, high = map(_value, (values[0], values[-1]))
    return low if low == high else f"{low} to {high}"


def _of(number: int | None, total: int) -> str:
    return "-" if number is None else f"{number} of {total}"


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
