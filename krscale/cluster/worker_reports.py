"""What workers report to the driver of one training, and how a training that hangs is ended.

Every worker reports its steps, with one message in a few seconds. Where none comes from any worker
for `search.stall_seconds`, all of them are ended. Ray Train then starts them again from the last
epoch, as it does for a worker that was killed, and as often.
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

from krscale.stalls import Sign, StallWatch, seconds_between

OnEpoch = Callable[[dict[str, float]], None]

CHECK_SECONDS = 1.0
"""Between two checks, where nothing is reported."""


@dataclass(frozen=True)
class StepReport:
    """A worker has begun, or has made a step.

    Attributes:
        rank: The worker's.
        worker: Handle of its actor.
        started: Whether it has made a step.
    """

    rank: int
    worker: Any
    started: bool


@dataclass(frozen=True)
class WorkersLost:
    """A worker has failed, and all of them are started again, or none."""


class StepReporter:
    """Reports a worker's steps to the driver; made where the worker begins.

    Args:
        send: Sends a message to the driver and does not wait for it.
        rank: The worker's.
        stall_seconds: `search.stall_seconds`.
        clock: Seconds; replaced in tests.
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
        """Report a step; cheap enough for every one."""
        now = self.clock()
        if now >= self.next_at:
            self.next_at = now + self.seconds
            self.send(self.report)


class EpochReporter(UserCallback):
    """Sends every epoch's metrics from Ray Train's controller, another process, to the driver."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """All workers reported the same sums; the first one's are passed on."""
        self.queue.put(dict(metrics[0]))

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """From here to the first message of a new worker, no time counts."""
        self.queue.put(WorkersLost())


class ReportReader(threading.Thread):
    """Passes epochs on, and ends the workers of a training that hangs.

    A training without workers waits for them, however long.

    Args:
        queue: What `StepReporter` and `EpochReporter` write to; None ends the reader.
        on_epoch: Called with the metrics of every epoch.
        note: Prints a line for the user.
        watch: Judges the pauses.

    Attributes:
        why_ended: Why the workers that are gone were ended here, in a sentence; empty where they
            were not.
    """

    def __init__(
        self, queue: Queue, on_epoch: OnEpoch, note: Callable[[str], None], watch: StallWatch
    ) -> None:
        super().__init__(daemon=True)
        self.queue, self.on_epoch, self.note, self.watch = queue, on_epoch, note, watch
        self.why_ended = ""
        self._workers: dict[int, Any] = {}
        self._any_step = False
        self._num_read = 0

    def run(self) -> None:
        """Read until None comes."""
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
        """Take one message."""
        self._num_read += 1
        if isinstance(message, StepReport):
            self._workers[message.rank] = message.worker
            self._any_step = self._any_step or message.started
            self.why_ended = ""
        elif isinstance(message, WorkersLost):
            self._begin_anew()
        else:
            self.on_epoch(message)

    def check(self) -> None:
        """End all workers if none has reported anything for too long."""
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
        self.watch.look({})  # what comes before the next worker is no pause
