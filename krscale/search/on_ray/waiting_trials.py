"""Inform the user if no trial runs because Ray has no room for one, as after the loss of a node."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from krscale.cluster.connect import describe_nodes

WAIT_SECONDS = 60.0
"""Time without a trial on a worker until a line is printed, once until the next trial begins."""


class WaitingTrials(tune.Callback):
    """Checks the search between Tune's steps.

    Args:
        resources: Resources that each worker of a trial reserves.
        num_workers: Number of workers of a trial.
        is_running: Returns whether any trial has a worker.
        say: Prints a line for the user.
        clock: Returns the time in seconds; replaced in tests.
    """

    def __init__(
        self,
        resources: Mapping[str, float],
        num_workers: int,
        is_running: Callable[[], bool],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.resources, self.num_workers = dict(resources), num_workers
        self.is_running, self.say, self.clock = is_running, say, clock
        self.controller: Any = None
        self._since, self._said = clock(), False

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing; Tune pickles callbacks for `Tuner.restore`, which krscale never calls."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Record when a trial last had a worker; print a line if that was too long ago."""
        if self.controller is None or self.is_running() or not _without_room(self.controller):
            self._since, self._said = self.clock(), False
        elif not self._said and self.clock() - self._since >= WAIT_SECONDS:
            self._said = True
            self.say(self._sentence())

    def _sentence(self) -> str:
        each = " and ".join(f"{amount:g} {name}" for name, amount in self.resources.items())
        times = f"{self.num_workers} times " if self.num_workers > 1 else ""
        available = ray.available_resources()  # type: ignore[no-untyped-call]
        free = " and ".join(f"{available.get(name, 0.0):g} {name}" for name in self.resources)
        return (
            f"no trial has had a worker for {WAIT_SECONDS:.0f} s: a trial needs {times}{each}; the "
            f"cluster has {describe_nodes(self.resources)}, of which {free} are free. The search "
            f"goes on when there is room."
        )


def _without_room(controller: Any) -> bool:
    """Return whether Tune has asked Ray for room that it has not received yet."""
    staged = controller._actor_manager._resource_manager._request_to_staged_pgs
    return any(staged.values())
