"""Reports from workers to the driver of one training, and the ending of a stalled training.

Every worker reports its steps, with one message every few seconds. If no worker sends a message for
`search.stall_seconds`, the driver ends all workers. Ray Train then starts them again from the last
epoch, under the same limit as for a worker that was killed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.train import UserCallback
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from krscale.stalls import Sign, StallWatch, seconds_between

OnEpoch = Callable[[dict[str, float]], None]

CHECK_SECONDS = 1.0
"""Interval between two checks if no reports arrive."""


@dataclass(frozen=True)
class StepReport:
    """A worker has begun, or has made a step.

    Attributes:
        rank: Rank of the worker.
        worker: Handle of its actor.
        started: Whether the worker has made a step.
    """

    rank: int
    worker: Any
    started: bool


@dataclass(frozen=True)
class WorkersLost:
    """A worker has failed; Ray Train starts all workers again, or none."""


class StepReporter:
    """Reports a worker's steps to the driver; created when the worker begins.

    Args:
        send: Sends a message to the driver without waiting for it.
        rank: Rank of the worker.
        stall_seconds: `search.stall_seconds`.
        clock: Returns the time in seconds; replaced in tests.
    """

    def __init__(
        self,
        send: Callable[[StepReport], object],
        rank: int,
        stall_seconds: float | str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.send, self.clock = send, clock
        self.seconds, self.next_at = seconds_between(stall_seconds), float("-inf")
        worker = ray.get_runtime_context().current_actor
        self.report = StepReport(rank, worker, started=True)
        send(StepReport(rank, worker, started=False))

    def step(self) -> None:
        """Report a step; cheap enough to call after every step."""
        now = self.clock()
        if now >= self.next_at:
            self.next_at = now + self.seconds
            self.send(self.report)


class EpochReporter(UserCallback):
    """Sends every epoch's metrics to the driver from Ray Train's controller, another process."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Pass on the first worker's metrics; all workers report the same sums."""
        self.queue.put(dict(metrics[0]))

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Report the failure; no time counts from here to the first message of a new worker."""
        self.queue.put(WorkersLost())


def report_queue() -> Queue:
    """Return a queue on this node; if another node held it and died, the training would be lost."""
    node = ray.get_runtime_context().get_node_id()
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    # The queue reserves no core, since workers may take all of them.
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": place})


class ReportReader(threading.Thread):
    """Passes epochs on, and ends the workers of a training that has stalled.

    A training that has no workers waits for them without a time limit.

    Args:
        queue: The queue that `StepReporter` and `EpochReporter` write to; None ends the reader.
        on_epoch: Called with the metrics of every epoch.
        note: Prints a line for the user.
        watch: Decides which pauses are too long.

    Attributes:
        why_ended: Why this reader ended the latest workers, as a sentence; empty if it did not.
        error: The first exception of `on_epoch`, which is then not called again, or else of this
            thread, which it ended. The code that waits for the training raises it.
    """

    def __init__(
        self, queue: Queue, on_epoch: OnEpoch, note: Callable[[str], None], watch: StallWatch
    ) -> None:
        super().__init__(daemon=True)
        self.queue, self.on_epoch, self.note, self.watch = queue, on_epoch, note, watch
        self.why_ended = ""
        self.error: Exception | None = None
        self._workers: dict[int, Any] = {}
        self._any_step = False
        self._num_read = 0

    def run(self) -> None:
        """Read messages until None arrives; whatever ends the thread before is kept as `error`."""
        try:
            self._read()
        except Exception as error:  # noqa: BLE001 - nobody else would learn of it
            self.error = self.error or error

    def _read(self) -> None:
        while True:
            try:
                message = self.queue.get(timeout=CHECK_SECONDS)
            except Empty:
                pass
            else:
                if message is None:
                    return
                self.take(message)
            self.check()

    def take(self, message: StepReport | WorkersLost | dict[str, float]) -> None:
        """Handle one message."""
        self._num_read += 1
        if isinstance(message, StepReport):
            self._workers[message.rank] = message.worker
            self._any_step = self._any_step or message.started
            self.why_ended = ""
        elif isinstance(message, WorkersLost):
            self._begin_anew()
        elif self.error is None:
            try:
                self.on_epoch(message)
            except Exception as error:  # noqa: BLE001 - in this thread, it would end nothing
                self.error = error
                self.note(
                    f"An epoch could not be recorded: {error} The training goes on and keeps its "
                    "weights, but no further epoch is recorded; then it ends with this error."
                )

    def check(self) -> None:
        """End all workers if none has sent a report for too long."""
        signs = {"training": Sign(self._any_step, self._num_read)} if self._workers else {}
        for seconds in self.watch.look(signs).values():
            self.why_ended = self.watch.sentence(seconds)
            self.note(
                f"The training: {self.why_ended}. Its workers are started again, unless they have "
                "failed too often."
            )
            for worker in self._workers.values():
                ray.kill(worker)
            self._begin_anew()

    def _begin_anew(self) -> None:
        self._workers.clear()
        self._any_step = False
        self.watch.look({})  # the time until the next worker starts is no pause
