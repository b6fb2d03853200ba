"""Compare what MLflow has of a record with what was sent to it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Set
from contextlib import suppress
from pathlib import Path

from krscale.foreign import is_file
from krscale.tracking.spool import Event

Values = Mapping[str, float]
"""Metric -> its value at the latest step."""


Point = tuple[str, str, int]
"""Key of a run, metric and step."""


def lacking(
    runs: Mapping[str, str],
    there: Mapping[str, Values],
    events: Iterable[Event],
    refused: Set[Point] = frozenset(),
) -> tuple[list[str], list[str]]:
    """Return the runs that MLflow no longer has, and those of which it lacks values.

    Args:
        runs: Runs that were sent: key -> MLflow's id.
        there: Runs that MLflow has: id -> their latest values, as MLflow shows them.
        events: Everything that was recorded.
        refused: Points that MLflow has refused, and would refuse again.

    Example:
        >>> point = Event("log", "kr", 0, {"metrics": {"loss": 0.5}, "step": 1, "tags": {}})
        >>> lacking({"kr": "a", "kd": "b"}, {"a": {"loss": 2.0}}, [point])
        (['kd'], ['kr'])
    """
    last = _last_values(events, refused)
    gone = [key for key, run_id in runs.items() if run_id not in there]
    short = [
        key
        for key, run_id in runs.items()
        if run_id in there and not last.get(key, {}).items() <= there[run_id].items()
    ]
    return gone, short


def refused_points(path: Path) -> set[Point]:
    """Return the points that MLflow has refused, from the record of refusals.

    Unreadable lines are skipped: their points are sent again, and refused again.

    Args:
        path: `refused.jsonl`.
    """
    if not is_file(path):
        return set()
    found: set[Point] = set()
    with path.open("rb") as file:
        for line in file:
            with suppress(ValueError, LookupError, TypeError, RecursionError):
                content = json.loads(line)
                if content["what"] == "metrics":
                    points = ((str(name), int(step)) for name, _, _, step in content["items"])
                    found |= {(str(content["key"]), name, step) for name, step in points}
    return found


def _last_values(events: Iterable[Event], refused: Set[Point]) -> dict[str, dict[str, float]]:
    latest: dict[str, dict[str, tuple[int, int, float]]] = {}
    for event in events:
        if event.op != "log":
            continue
        of_run = latest.setdefault(event.key, {})
        for name, value in event.content["metrics"].items():
            if (event.key, name, event.content["step"]) in refused:
                continue
            point = (event.content["step"], event.time_ms, value)
            of_run[name] = max(of_run.get(name, point), point)
    return {
        key: {name: value for name, (_, _, value) in of_run.items()}
        for key, of_run in latest.items()
    }
