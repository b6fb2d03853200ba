"""How many trials may be handed out: one for every place of the cluster, and none on the shelf.

Left to itself, Tune keeps one trial waiting and, while that trial's worker is starting, gives it
the worker of any trial that ends; the worker that was starting is thrown away. Where trials end
sooner than a worker starts (some seconds), no second worker ever comes up. With a trial for every
place, whoever ends is given a new one, and the others' workers come up in peace. And none is asked
for before it can run, since trials asked for later know more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from krscale.cluster.connect import can_grow, num_slots

REFRESH_SECONDS = 1.0
"""Between two looks at the cluster."""


class Slots:
    """The places of the connected cluster, looked up again as nodes come and go.

    Args:
        resources: What a worker of a trial reserves.
        num_workers: Workers of a trial.
        clock: Seconds.
    """

    def __init__(
        self,
        resources: Mapping[str, float],
        num_workers: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resources, self._num_workers, self._clock = dict(resources), num_workers, clock
        self._num_slots, self._looked_at = 0, float("-inf")

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
            self._num_slots = num_slots(self._resources, self._num_workers)
            self._looked_at = self._clock()
        return self._num_slots
