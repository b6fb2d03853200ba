"""Insight in a terminal: per method and size, the best, what came near it, and what mattered."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from krscale.report.findings import Insight, StudyInsight


def insight_tables(insight: Insight) -> list[Table]:
    """Return one table per method, with a row for each size and setting."""
    return [_table(method, insight.of_method(method)) for method in insight.methods]


def _table(method: str, studies: list[StudyInsight]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(method, no_wrap=True)
    table.add_column("setting", no_wrap=True)
    for title in ("best", "within half a point", "share of variance"):
        table.add_column(title, overflow="fold")
    for study in studies:
        ended = f"{study.num_complete} whole, {study.num_pruned} stopped, {study.num_failed} failed"
        accuracy = "" if study.best_accuracy is None else f"{100 * study.best_accuracy:.1f} %"
        table.add_row(study.capacity, ended, accuracy, "", study.importance.reason)
        for name, value in study.best.items():
            share = study.importance.shares.get(name)
            table.add_row(
                "", name, _number(value), _range(study.near_best.get(name, [])),
                "" if share is None else f"{100 * share:.0f} %",
            )  # fmt: skip
    return table


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _range(values: list[Any]) -> str:
    if not values or values[0] == values[-1]:
        return _number(values[0]) if values else ""
    separator = ", " if isinstance(values[0], str) else " .. "
    return separator.join(map(_number, values))
