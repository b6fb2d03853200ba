"""Signs of progress: a file per trial whose time changes at its steps, on the run's own storage.

An epoch may take hours, so that nothing is heard of a trial in between. What its worker leaves here
tells a trial that computes from one that hangs, without a message to the driver.
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
    """What a trial's worker leaves of its progress.

    Args:
        path: The file (`checkpoints.sign_path`); made at once.
        seconds: Between two signs.
        clock: Seconds; replaced in tests.
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
        """Say that a step was made; cheap enough for every step."""
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
        if self.given:  # a trial is begun by being here, and short ones need no more
            send_sign(self.path)
        self.given = True


def last_sign(path: Path) -> int | None:
    """Return a number that is another after every sign; None before the first.

    The file is opened, since a network file system looks for changes then, and answers from what it
    has seen up to a minute ago otherwise.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        return os.fstat(descriptor).st_mtime_ns
    finally:
        os.close(descriptor)
