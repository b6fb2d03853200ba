"""How many trials may be handed out: one for every place of the cluster, and none waiting.

Left to itself, Tune keeps one trial waiting and, while that trial's worker is starting, gives it
the worker of any trial that ends; the worker that was starting is thrown away. Where trials end
sooner than a worker starts (some seconds), no second worker ever comes up. With a trial for every
place, a worker whose trial ends is given a new one, and the others come up. And none is asked
for before it can run, since trials asked for later know more.

Where the number of a trial's workers may vary (`train.max_workers`), a trial is handed out for
the workers that have no trial yet, as many as it may have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from krscale.cluster.connect import can_grow, num_slots

REFRESH_SECONDS = 1.0
"""Between two looks at the cluster."""


class Slots:
    """The places of the connected cluster, looked up again as nodes come and go.

    Args:
        resources: What a worker of a trial reserves.
        num_workers: Workers of a trial, the least where it varies.
        most_workers: The most; as many as the least if it does not vary.
        clock: Seconds.
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
        """Return how many workers one more trial may have; 0 where none may be handed out.

        Where it varies, a cluster that grows is asked for the least number only, and only where
        nothing else is there to train.

        Args:
            begun: Workers of each trial that is on them and has not ended.
            waiting: Workers of each trial that was handed out and has none yet.
        """
        if not self._varies:
            return self._num_workers if self.has_room(len(begun), len(waiting)) else 0
        free = self._current() - sum(begun) - sum(waiting)
        if free >= self._num_workers:
            return min(free, self._most_workers)
        return 0 if begun or waiting else self._num_workers

    def oversized(self, size: int, begun: Collection[int], waiting: Collection[int]) -> bool:
        """Whether a trial that waits for so many workers could have fewer now, and not as many.

        It was handed out for workers that have gone since, with their node.

        Args:
            size: Workers that it waits for.
            begun: As in `next_size`.
            waiting: As in `next_size`; of the others.
        """
        if not self._varies:
            return False
        free = self._current() - sum(begun) - sum(waiting)
        return self._num_workers <= free < size

    def has_room(self, num_begun: int, num_waiting: int) -> bool:
        """Return whether one more trial may be handed out.

        A cluster that can grow does so for what waits for a place, so there one trial may.

        Args:
            num_begun: Trials on a worker that have not ended.
            num_waiting: Trials that were handed out and have no worker yet.
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
