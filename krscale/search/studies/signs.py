"""Signs of progress: one file per trial in the run's storage, whose time changes as it makes steps.

An epoch may take hours, during which a trial sends no reports. The sign that its worker leaves here
shows, without a message to the driver, whether the trial still computes or hangs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from krscale.stalls import SECONDS_BETWEEN
from krscale.storage.trial_files import send_sign


class Signs:
    """Writes the signs of progress of one trial, in its worker.

    Args:
        path: The file (`checkpoints.sign_path`); created at once.
        seconds: Interval between two signs.
        clock: Returns the time in seconds; replaced in tests.
    """

    def __init__(
        self,
        path: Path,
        seconds: float = SECONDS_BETWEEN,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path, self.seconds, self.clock = path, seconds, clock
        self.next_at, self.given = float("-inf"), False
        path.parent.mkdir(parents=True, exist_ok=True)
        self.give()

    def give(self) -> None:
        """Record that a step was made; cheap enough to call at every step."""
        now = self.clock()
        if now < self.next_at:
            return
        self.next_at = now + self.seconds
        with suppress(FileNotFoundError):  # the search has ended, and its folder is gone
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            try:
                os.utime(descriptor)
            finally:
                os.close(descriptor)
        if self.given:  # the first sign need not be sent; short trials need no more
            send_sign(self.path)
        self.given = True


def last_sign(path: Path) -> int | None:
    """Return a number that changes with every sign; None before the first.

    The file is opened because a network file system then checks for changes; otherwise, its answer
    may be up to a minute old.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        return os.fstat(descriptor).st_mtime_ns
    finally:
        os.close(descriptor)
