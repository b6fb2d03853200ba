"""What makes no progress, a trial or one training: judged by the pace that was shown so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

LEAST_SECONDS = 600.0
"""Of `auto`: the first step of a compiled network takes minutes, and so may a busy storage."""
TIMES_THE_LONGEST = 20.0
"""Of `auto`: how much longer than the longest pause of any trial so far."""
LEAST_SECONDS_AT_THE_END = 120.0
"""The same once `search.max_wall_seconds` have passed."""
START_SECONDS = 600.0
"""A worker's start (a process, its imports, the opening of the data) may take so long anyway."""
SECONDS_BETWEEN = 5.0
"""Signs, at most; on some storage every one is a request to a server."""
SIGNS_PER_STALL = 4
"""At least so many are left in the time after which a trial without one is ended."""
LONGEST_LOOK = 5.0
"""What one look can add to a pause: a driver that was stopped itself has seen nothing meanwhile."""


def seconds_between(stall_seconds: float | str) -> float:
    """Return how often a trial leaves a sign, under `search.stall_seconds`.

    Example:
        >>> seconds_between("auto"), seconds_between(8.0)
        (5.0, 2.0)
    """
    if isinstance(stall_seconds, str) or stall_seconds == 0.0:
        return SECONDS_BETWEEN
    return min(SECONDS_BETWEEN, stall_seconds / SIGNS_PER_STALL)


@dataclass(frozen=True)
class Sign:
    """What is seen of a trial that has a worker.

    Attributes:
        started: Whether its worker has begun with it.
        content: Anything that is another after each step.
    """

    started: bool
    content: object


@dataclass
class _Pause:
    sign: Sign
    seconds: float = 0.0


class StallWatch:
    """Measures how long each trial has shown no progress.

    Args:
        stall_seconds: `search.stall_seconds`.
        clock: Seconds; replaced in tests.

    Example:
        >>> now = 0.0
        >>> watch = StallWatch(4.0, clock=lambda: now)
        >>> for now in (0.0, 3.0, 6.0):
        ...     print(watch.look({"a": Sign(True, 1), "b": Sign(True, now)}))
        {}
        {}
        {'a': 6.0}
    """

    def __init__(
        self,
        stall_seconds: float | Literal["auto", "off"],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stall_seconds, self.clock = stall_seconds, clock
        self.longest = 0.0
        self._pauses: dict[str, _Pause] = {}
        self._looked_at = clock()

    def look(self, signs: Mapping[str, Sign], *, at_the_end: bool = False) -> dict[str, float]:
        """Return the trials that hang, each with the seconds since its last sign.

        Args:
            signs: Trial -> what is seen of it now; trials without a worker are left out.
            at_the_end: Whether the time of the whole search is up.
        """
        now = self.clock()
        passed, self._looked_at = min(now - self._looked_at, LONGEST_LOOK), now
        before, self._pauses = self._pauses, {}
        for name, sign in signs.items():
            pause = before.get(name)
            if pause is None or pause.sign != sign:
                if pause is not None and pause.sign.started:
                    self.longest = max(self.longest, pause.seconds + passed)
                pause = _Pause(sign)
            else:
                pause.seconds += passed
            self._pauses[name] = pause
        limit = self.limit(at_the_end=at_the_end)
        return {
            name: pause.seconds
            for name, pause in self._pauses.items()
            if pause.seconds >= (limit if pause.sign.started else max(limit, START_SECONDS))
        }

    def limit(self, *, at_the_end: bool = False) -> float:
        """Return after how many seconds without a sign a trial is ended; infinity for never."""
        pace = TIMES_THE_LONGEST * self.longest
        limit = float("inf")
        if self.stall_seconds == "auto":
            limit = max(LEAST_SECONDS, pace)
        elif self.stall_seconds != "off":
            limit = float(self.stall_seconds) or limit
        return min(limit, max(LEAST_SECONDS_AT_THE_END, pace)) if at_the_end else limit

    def sentence(self, seconds: float, *, at_the_end: bool = False) -> str:
        """Say why a trial was ended, as its error."""
        setting = self.stall_seconds
        text = repr(setting) if isinstance(setting, str) else f"{setting:g}"
        rule = f"search.stall_seconds = {text}"
        if at_the_end and seconds < self.limit():
            rule = "search.max_wall_seconds have passed"
        return f"it made no progress for {seconds:.0f} s and was ended ({rule})"
