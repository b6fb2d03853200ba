"""What a record contains so far: runs that were started and ended, and points of metrics."""

from __future__ import annotations

from krscale.tracking.spool import Event


class Recorded:
    """The runs and points of one record, from this process and earlier ones."""

    def __init__(self) -> None:
        self._started: set[str] = set()
        self._ended: set[str] = set()
        self._points: dict[tuple[str, str, int], float] = {}

    def note(self, event: Event) -> None:
        """Take an event into account."""
        if event.op == "start":
            self._started.add(event.key)
            self._ended.discard(event.key)
        elif event.op == "end" and event.content["status"] == "RUNNING":
            self._ended.discard(event.key)
        elif event.op == "end":
            self._ended.add(event.key)
        elif event.op == "log":
            step = event.content["step"]
            for name, value in event.content["metrics"].items():
                self._points[event.key, name, step] = value

    def has_run(self, key: str) -> bool:
        """Return whether a run of this key was started."""
        return key in self._started

    def has_ended(self, key: str) -> bool:
        """Return whether the end of a run was recorded, and no new start since."""
        return key in self._ended

    def has_point(self, key: str, metric: str, step: int, value: float) -> bool:
        """Return whether the last value of a metric at a step is this one."""
        return self._points.get((key, metric, step)) == value

    def next_step(self, key: str, prefix: str) -> int:
        """Return the step after the last point of a run's metrics with a prefix; 0 without any."""
        steps = (s for of, name, s in self._points if of == key and name.startswith(prefix))
        return 1 + max(steps, default=-1)
