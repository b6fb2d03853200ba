"""Detecting trials and trainings without progress, based on their pace so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

LEAST_SECONDS = 600.0
"""For `auto`: the first step of a compiled network, or a busy storage, may take minutes."""
TIMES_THE_LONGEST = 20.0
"""For `auto`: multiple of the longest pause of any trial so far."""
LEAST_SECONDS_AT_THE_END = 120.0
"""Replaces `LEAST_SECONDS` after `search.max_wall_seconds` have passed."""
START_SECONDS = 600.0
"""Time allowed for the start of a worker in any case (a process, its imports, opening the data)."""
SECONDS_BETWEEN = 5.0
"""Maximum time between signs; on some storage every sign is a request to a server."""
SIGNS_PER_STALL = 4
"""Minimum number of signs within the time after which a trial without one is ended."""
LONGEST_LOOK = 5.0
"""Maximum time that one look adds to a pause: a driver that was suspended itself saw no signs."""


def seconds_between(stall_seconds: float | str) -> float:
    """Return the seconds between two signs of a trial, given `search.stall_seconds`.

    Example:
        >>> seconds_between("auto"), seconds_between(8.0)
        (5.0, 2.0)
    """
    if isinstance(stall_seconds, str) or stall_seconds == 0.0:
        return SECONDS_BETWEEN
    return min(SECONDS_BETWEEN, stall_seconds / SIGNS_PER_STALL)


@dataclass(frozen=True)
class Sign:
    """The state of a trial that has a worker.

    Attributes:
        started: Whether its worker has started the trial.
        content: Any value that changes with each step.
    """

    started: bool
    content: object


@dataclass
class _Pause:
    sign: Sign
    seconds: float = 0.0


class StallWatch:
    """Measures how long each trial has made no progress.

    Args:
        stall_seconds: `search.stall_seconds`.
        clock: Returns seconds; replaced in tests.

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
        """Return the trials that have stalled, each with the seconds since its last sign.

        Args:
            signs: Trial -> its current sign; trials without a worker are left out.
            at_the_end: Whether the time of the whole search is over.
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
        """Return the seconds without a sign after which a trial is ended; infinity for never."""
        pace = TIMES_THE_LONGEST * self.longest
        limit = float("inf")
        if self.stall_seconds == "auto":
            limit = max(LEAST_SECONDS, pace)
        elif self.stall_seconds != "off":
            limit = float(self.stall_seconds) or limit
        return min(limit, max(LEAST_SECONDS_AT_THE_END, pace)) if at_the_end else limit

    def sentence(self, seconds: float, *, at_the_end: bool = False) -> str:
        """Return the error message of a trial that was ended."""
        setting = self.stall_seconds
        text = repr(setting) if isinstance(setting, str) else f"{setting:g}"
        rule = f"search.stall_seconds = {text}"
        if at_the_end and seconds < self.limit():
            rule = "search.max_wall_seconds have passed"
        return f"it made no progress for {seconds:.0f} s and was ended ({rule})"
