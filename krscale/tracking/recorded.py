"""What a record contains so far: runs that were started and ended, and points of metrics."""

from __future__ import annotations

from itertools import chain

from krscale.tracking.spool import Event


def successor(key: str) -> str:
    """Return the key of the run that takes a run's place.

    Example:
        >>> successor("kr"), successor("kr:2")
        ('kr:2', 'kr:3')
    """
    name, _, number = key.partition(":")
    return f"{name}:{int(number or 1) + 1}"


class Recorded:
    """The runs and points of one record, from this process and earlier ones.

    Another thread may record points (`system.py`) while the points are listed.
    """

    def __init__(self) -> None:
        self._started: set[str] = set()
        self._ended: set[str] = set()
        self._points: dict[tuple[str, str, int], float] = {}
        self._earlier: set[tuple[str, str, int, float]] = set()

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
                place = event.key, name, step
                if (before := self._points.get(place, value)) != value:
                    self._earlier.add((*place, before))
                self._points[place] = value

    def has_run(self, key: str) -> bool:
        """Return whether a run of this key was started."""
        return key in self._started

    def newest(self, key: str) -> str:
        """Return the key of the run that has taken a run's place last; the key itself if none."""
        while self.has_run(later := successor(key)):
            key = later
        return key

    def has_ended(self, key: str) -> bool:
        """Return whether the end of a run was recorded, and no new start since."""
        return key in self._ended

    def has_point(self, key: str, metric: str, step: int, value: float) -> bool:
        """Return whether the last value of a metric at a step is this one."""
        return self._points.get((key, metric, step)) == value

    def points(self, key: str) -> set[tuple[str, int, float]]:
        """Return the metric, step and value of each point of a run: MLflow removes none of them.

        Several students may have one number of parameters, and thus one step.
        """
        last = ((*place, value) for place, value in self._points.copy().items())
        points = chain(last, self._earlier.copy())
        return {(name, step, value) for of, name, step, value in points if of == key}

    def next_step(self, key: str, prefix: str) -> int:
        """Return the step after the last point of a run's metrics with a prefix; 0 without any."""
        points = self._points.copy()
        steps = (step for of, name, step in points if of == key and name.startswith(prefix))
        return 1 + max(steps, default=-1)
