"""A search space in readable form: per method the fields, their ranges and their conditions."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from krscale.config import Experiment
from krscale.search.space.distributions import contains, describe_range
from krscale.search.space.fields import own_value
from krscale.search.space.space import SearchSpace

_OUTSIDE = " (outside)"


def space_rows(space: SearchSpace, experiment: Experiment) -> list[dict[str, Any]]:
    """Return one row per method and field: its type, range, condition and the experiment's value.

    `inside` is whether the space contains the experiment's own value, which is then tried first.
    """
    content = experiment.model_dump(mode="json")
    return [
        {
            "method": method,
            "field": path,
            "type": type(distribution).__name__.removesuffix("Distribution").lower(),
            "range": describe_range(distribution),
            "when": " and ".join(map(str, space.conditions_of(method, path))),
            "own_value": own_value(content, path),
            "inside": contains(distribution, own_value(content, path)),
        }
        for method, fields in space.by_method.items()
        for path, distribution in fields.items()
    ]


def space_tables(space: SearchSpace, experiment: Experiment) -> list[Table]:
    """Return one table per method; `(outside)` marks an own value that the space lacks."""
    tables: dict[str, Table] = {}
    for row in space_rows(space, experiment):
        if row["method"] not in tables:
            table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
            table.add_column(row["method"], no_wrap=True)
            for title in ("range", "own value", "when"):
                table.add_column(title, overflow="fold")
            tables[row["method"]] = table
        own = f"{row['own_value']}{'' if row['inside'] else _OUTSIDE}"
        tables[row["method"]].add_row(
            row["field"], f"{row['type']} {row['range']}", own, row["when"]
        )
    return list(tables.values())
