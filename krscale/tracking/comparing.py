"""What MLflow has of a record, compared with what it was sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from krscale.tracking.spool import Event

Values = Mapping[str, float]
"""Metric -> its value at the latest step."""


def lacking(
    runs: Mapping[str, str], there: Mapping[str, Values], events: Iterable[Event]
) -> tuple[list[str], list[str]]:
    """Return the runs that MLflow has no more, and those of which it lacks values.

    Args:
        runs: Those that it was sent: key -> MLflow's id.
        there: Those that it has: id -> the last values, as MLflow shows them.
        events: All that was recorded.

    Example:
        >>> point = Event("log", "kr", 0, {"metrics": {"loss": 0.5}, "step": 1, "tags": {}})
        >>> lacking({"kr": "a", "kd": "b"}, {"a": {"loss": 2.0}}, [point])
        (['kd'], ['kr'])
    """
    last = _last_values(events)
    gone = [key for key, run_id in runs.items() if run_id not in there]
    short = [
        key
        for key, run_id in runs.items()
        if run_id in there and not last.get(key, {}).items() <= there[run_id].items()
    ]
    return gone, short


def _last_values(events: Iterable[Event]) -> dict[str, dict[str, float]]:
    latest: dict[str, dict[str, tuple[int, int, float]]] = {}
    for event in events:
        if event.op != "log":
            continue
        of_run = latest.setdefault(event.key, {})
        for name, value in event.content["metrics"].items():
            point = (event.content["step"], event.time_ms, value)
            of_run[name] = max(of_run.get(name, point), point)
    return {
        key: {name: value for name, (_, _, value) in of_run.items()}
        for key, of_run in latest.items()
    }
