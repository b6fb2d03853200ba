"""How many trials may be handed out: one for every place of the cluster, and none in advance.

By default, Tune keeps one trial waiting. While that trial's worker is starting, Tune gives the
trial the worker of any trial that ends, and discards the starting worker. If trials end sooner than
a worker starts (some seconds), no second worker ever comes up. With one trial for every place, a
worker whose trial ends gets a new one, and the other workers come up. No trial is asked for before
it can run, because the settings of a later trial are based on more results.

If the number of a trial's workers may vary (`train.max_workers`), a trial gets the workers that
have no trial yet, up to its maximum.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from krscale.cluster.connect import can_grow, num_slots

REFRESH_SECONDS = 1.0
"""Interval between two look-ups of the cluster's places."""


class Slots:
    """The places of the connected cluster, updated as nodes join and leave.

    Args:
        resources: Resources that one worker of a trial reserves.
        num_workers: Number of workers of a trial; the minimum if it varies.
        most_workers: The maximum; equal to the minimum if it does not vary.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        resources: Mapping[str, float],
        num_workers: int = 1,
        most_workers: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resources, self._num_workers, self._clock = dict(resources), num_workers, clock
        self._most_workers = max(num_workers, most_workers)
        self._varies = self._most_workers > num_workers
        self._num_slots, self._looked_at = 0, float("-inf")

    def next_size(self, begun: Collection[int], waiting: Collection[int]) -> int:
        """Return how many workers one more trial may have; 0 if none may be handed out.

        If the number varies, a cluster that can grow is asked only for the minimum, and only if no
        other trial is running or waiting.

        Args:
            begun: Number of workers of each trial that is running.
            waiting: Number of workers of each trial that was handed out and has no workers yet.
        """
        if not self._varies:
            return self._num_workers if self.has_room(len(begun), len(waiting)) else 0
        free = self._current() - sum(begun) - sum(waiting)
        if free >= self._num_workers:
            return min(free, self._most_workers)
        return 0 if begun or waiting else self._num_workers

    def oversized(self, size: int, begun: Collection[int], waiting: Collection[int]) -> bool:
        """Return whether a waiting trial could start now with fewer workers, but not with its own.

        It was handed out for workers that have since been lost with their node.

        Args:
            size: Number of workers that the trial waits for.
            begun: As in `next_size`.
            waiting: As in `next_size`, for the other trials.
        """
        if not self._varies:
            return False
        free = self._current() - sum(begun) - sum(waiting)
        return self._num_workers <= free < size

    def has_room(self, num_begun: int, num_waiting: int) -> bool:
        """Return whether one more trial may be handed out.

        A cluster that can grow does so for waiting trials, so one trial may wait there.

        Args:
            num_begun: Number of trials on a worker that have not ended.
            num_waiting: Number of trials that were handed out and have no worker yet.
        """
        if num_begun + num_waiting < max(1, self._current()):
            return True
        return can_grow() and num_waiting == 0

    def _current(self) -> int:
        if self._clock() - self._looked_at >= REFRESH_SECONDS:
            each = 1 if self._varies else self._num_workers
            self._num_slots = num_slots(self._resources, each)
            self._looked_at = self._clock()
        return self._num_slots
