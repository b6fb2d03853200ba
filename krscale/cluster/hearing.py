"""What the driver hears of a training over many workers, and how one that hangs is ended.

Every worker tells the driver of its steps, with one message in a few seconds. Where none comes from
any worker for `search.stall_seconds`, all of them are ended. Ray Train then starts them again from
the last epoch, as it does for a worker that was killed, and as often.
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

LOOK_SECONDS = 1.0
"""Between two looks, where nothing is heard."""


@dataclass(frozen=True)
class Step:
    """A worker has begun, or has made a step.

    Attributes:
        rank: The worker's.
        worker: Handle of its actor.
    """

    rank: int
    worker: Any


@dataclass(frozen=True)
class Lost:
    """A worker has failed, and all of them are started again, or none."""


class Steps:
    """Tells the driver of a worker's steps; made where the worker begins.

    Args:
        send: Hands a message to the driver and does not wait for it.
        rank: The worker's.
        stall_seconds: `search.stall_seconds`.
        clock: Seconds; replaced in tests.
    """

    def __init__(
        self,
        send: Callable[[Step], object],
        rank: int,
        stall_seconds: float | str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.send, self.clock = send, clock
        self.seconds, self.next_at = seconds_between(stall_seconds), float("-inf")
        self.step = Step(rank, ray.get_runtime_context().current_actor)
        self.give()

    def give(self) -> None:
        """Say that a step was made; cheap enough for every step."""
        now = self.clock()
        if now >= self.next_at:
            self.next_at = now + self.seconds
            self.send(self.step)


class Epochs(UserCallback):
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
        self.queue.put(Lost())


class Listener(threading.Thread):
    """Passes epochs on, and ends the workers of a training that hangs.

    A training without workers waits for them, however long.

    Args:
        queue: What `Steps` and `Epochs` write to; None ends the listener.
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
        self._num_heard = 0

    def run(self) -> None:
        """Listen until None is heard."""
        while True:
            try:
                heard = self.queue.get(timeout=LOOK_SECONDS)
            except Empty:
                pass
            else:
                if heard is None:
                    return
                self.hear(heard)
            self.look()

    def hear(self, heard: Step | Lost | dict[str, float]) -> None:
        """Take one message."""
        self._num_heard += 1
        if isinstance(heard, Step):
            self._workers[heard.rank] = heard.worker
            self.why_ended = ""
        elif isinstance(heard, Lost):
            self._begin_anew()
        else:
            self.on_epoch(heard)

    def look(self) -> None:
        """End all workers if nothing was heard of any for too long."""
        signs = {"training": Sign(True, self._num_heard)} if self._workers else {}
        for seconds in self.watch.look(signs).values():
            self.why_ended = self.watch.sentence(seconds)
            self.note(f"The training: {self.why_ended}. It goes on from its last epoch.")
            for worker in self._workers.values():
                ray.kill(worker)
            self._begin_anew()

    def _begin_anew(self) -> None:
        self._workers.clear()
        self.watch.look({})  # what comes before the next worker is no pause
