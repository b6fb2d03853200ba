"""The workers of one place of the cluster, which train one trial after another together.

A trial's actor (`trial.py`) is the first worker. The others are actors that it starts once, in the
placement group that Tune has reserved for the trial, so Tune counts them all and none outlives it.
For each operation of the first worker on a training (build it, load it, run an epoch), it calls the
same operation on the others at the same time. Between calls the others wait, so Tune may stop a
trial after any epoch without leaving a worker inside an exchange.

If one worker fails (an exception, the end of its process), the others would wait for it. So while
the first worker does its part, a thread watches the calls to the others. When one fails, the thread
ends all of them, which breaks the connections that the first worker may be waiting on. Tune then
ends the trial and the place, and starts both again as it does for a single worker.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError, UnserializableException
from ray.util import get_current_placement_group, get_node_ip_address
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from krscale.cluster.meeting import Meeting, listening_socket
from krscale.cluster.versions import own_versions
from krscale.config import Experiment
from krscale.errors import KrscaleError
from krscale.models.given import Builder
from krscale.parallel import Workers
from krscale.search.on_ray.rank import Rank
from krscale.setup.prepare import Prepared, pick_device

Found = TypeVar("Found")

OTHERS_SECONDS = 2.0
"""Time after the failure of one worker in which errors of the others are collected and compared
with it: one worker may have been killed, and the others have only lost their connection to it."""
UNSTUCK_SECONDS = 10.0
"""Limit for the first worker's own exchange to end, after all other workers were ended."""

_LOST_CONNECTION = re.compile(r"gloo|nccl|TCPStore|connection (closed|reset)", re.IGNORECASE)


class LostRankError(Exception):
    """A worker of a group was lost, by no fault of the trial (see `trial_error.py`)."""


class Group:
    """The first worker's handle of its group.

    Args:
        ranks: Handles of the other workers, by rank; empty for a worker alone.
        workers: The first worker's place in the group.
    """

    def __init__(self, ranks: Sequence[Any], workers: Workers) -> None:
        self.ranks, self.workers = list(ranks), workers

    def together(self, method: str, *arguments: Any, own: Callable[[], Found]) -> Found:
        """Call a method of every other worker while this worker does its own part.

        Args:
            method: Name of a method of `Rank`.
            arguments: Arguments of the method, the same for all workers.
            own: Does this worker's part.

        Returns:
            The result of `own`, once all workers are done.

        Raises:
            LostRankError: If a worker is lost.
            Exception: The exception of a worker; if several failed, the one that caused the others.
        """
        if not self.ranks:
            return own()
        calls = [getattr(rank, method).remote(*arguments) for rank in self.ranks]
        return self._beside(calls, own)

    def _beside(self, calls: Sequence[Any], own: Callable[[], Found]) -> Found:
        watch = _Watch(calls, self.end)
        watch.start()
        try:
            found = own()
        except Exception as error:
            watch.own_is_over.set()
            watch.join(OTHERS_SECONDS + 1.0)  # calls that wait for this worker never end
            cause = first_cause(error, watch.failures)
            if cause is error:
                raise
            raise cause from error
        watch.own_is_over.set()
        watch.join()
        if watch.failures:
            raise first_cause(None, watch.failures)
        return found

    def end(self) -> None:
        """End the other workers."""
        for rank in self.ranks:
            ray.kill(rank)


class _Watch(threading.Thread):
    """Waits for calls to other workers; ends all workers if one call fails."""

    def __init__(self, calls: Sequence[Any], end: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self.calls, self.end = calls, end
        self.own_is_over = threading.Event()
        self.failures: dict[int, Exception] = {}

    def run(self) -> None:
        waiting, deadline = list(self.calls), float("inf")
        while waiting and time.monotonic() < deadline:
            left = deadline - time.monotonic()
            done, waiting = ray.wait(
                waiting, timeout=None if left == float("inf") else max(0, left)
            )
            for call in done:
                try:
                    ray.get(call)
                except RayError as error:
                    self.failures[self.calls.index(call) + 1] = error
                    deadline = min(deadline, time.monotonic() + OTHERS_SECONDS)
        if not self.failures:
            return
        self.end()
        if not self.own_is_over.wait(UNSTUCK_SECONDS):
            os._exit(1)  # nothing else ends an exchange of nccl; Tune finds a lost worker


def first_cause(own: Exception | None, failures: Mapping[int, Exception]) -> Exception:
    """Return the error that made the workers of a group fail.

    Args:
        own: Error of the first worker.
        failures: Rank -> error of another worker, as Ray returns it.
    """
    for rank, failure in failures.items():
        raised_one = isinstance(failure, UnserializableException)  # of a class that Ray cannot read
        if raised_one or getattr(failure, "actor_init_failed", False):
            return KrscaleError(str(failure))  # the worker's own exception
        if not isinstance(failure, RayTaskError):
            return _lost(rank, failure)
    raised = {0: own, **{rank: getattr(each, "cause", None) for rank, each in failures.items()}}
    found = {rank: error for rank, error in raised.items() if isinstance(error, Exception)}
    for error in found.values():
        if isinstance(error, KrscaleError) or not _LOST_CONNECTION.search(str(error)):
            return error
    # Only broken connections: by the network, or by a worker whose loss Ray has not noticed yet.
    rank, error = next(iter(found.items()))
    return _lost(rank, error)


def _lost(rank: int, error: BaseException) -> LostRankError:
    return LostRankError(f"worker {rank + 1} of the group: {type(error).__name__}: {error}")


def start_group(
    experiment: Experiment, prepared: Prepared, builders: Mapping[str, Builder]
) -> Group:
    """Start the other workers of this process's place, if trials have several workers.

    Args:
        experiment: The search. The group has as many workers as Tune has reserved places for this
            trial: `train.num_workers`, or up to `train.max_workers`.
        prepared: As for `Rank`.
        builders: As for `Rank`.
    """
    alone = Group((), Workers.alone(pick_device(experiment.train.device)))
    if experiment.train.most_workers == 1:
        return alone
    placement: Any = get_current_placement_group()  # reserved by Tune for this trial
    bundles = placement.bundle_specs
    num_workers = len(bundles)
    if num_workers == 1:
        return alone
    actor_class: Any = ray.remote(Rank)
    ranks = [
        actor_class.options(
            num_cpus=bundles[rank].get("CPU", 0.0),
            num_gpus=bundles[rank].get("GPU", 0.0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(placement, rank),
        ).remote(experiment, prepared, builders, own_versions())
        for rank in range(1, num_workers)
    ]
    group = Group(ranks, Workers.alone())
    host = get_node_ip_address()  # type: ignore[no-untyped-call]
    server = listening_socket(host)
    on_gpu = bool(bundles[0].get("GPU")) and experiment.train.device != "cpu"
    meeting = Meeting(host, server.getsockname()[1], num_workers, on_gpu)
    calls = [actor.join.remote(meeting, rank) for rank, actor in enumerate(ranks, start=1)]
    group.workers = group._beside(calls, lambda: meeting.join(0, server))
    return group
