"""The heartbeats of a run's driver, which a thread of their own writes into the storage.

To send or fetch a single object may take minutes. Without a heartbeat in that time, a driver on
another machine would count this one as ended, and two drivers would write one run.
"""

from __future__ import annotations

import math
import threading
import time
from _thread import interrupt_main
from collections.abc import Callable

from krscale.errors import StorageError, UserError
from krscale.storage.driver_lock import BEAT_SECONDS, EXPIRE_SECONDS, DriverLock

TRY_SECONDS = 2.0
"""Time between two checks whether a heartbeat is due."""


class Heartbeats:
    """Writes the heartbeats of a driver, from `begin` to `end`.

    Args:
        lock: The driver's lock of the run, acquired before `begin`.
        say: Takes a line for the user.

    Attributes:
        interrupts: Whether the thread interrupts the main thread if the driver must stop. If not,
            the main thread calls `check`.
        problem: Why the driver must stop: another driver has taken over, or the thread failed.
    """

    def __init__(self, lock: DriverLock, say: Callable[[str], None]) -> None:
        self.lock, self.say = lock, say
        self.interrupts = False
        self.problem: Exception | None = None
        self._writing, self._next_at = threading.Lock(), math.inf
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_writing, name="heartbeats", daemon=True)

    def begin(self) -> None:
        """Write heartbeats from now on."""
        self._next_at = time.monotonic() + BEAT_SECONDS
        self._thread.start()

    def end(self) -> None:
        """Write no more heartbeats; nothing is done if they have not begun, or have ended."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def check(self) -> None:
        """Raise `problem` if there is one."""
        if self.problem is not None:
            raise self.problem

    def write_if_due(self) -> None:
        """Write a heartbeat if one is due; called also before each object is sent.

        It stays due until it is written. So a driver that was cut off from the storage for long
        finds out that another driver has taken over before it sends anything.

        Raises:
            UserError: If another driver has taken over.
            StorageError: If the storage cannot be read or written.
        """
        with self._writing:
            self.check()
            if time.monotonic() < self._next_at:
                return
            try:
                self.lock.beat()
            except StorageError:
                raise
            except UserError as error:
                self.problem = error
                raise
            self._next_at = time.monotonic() + BEAT_SECONDS

    def _keep_writing(self) -> None:
        """Write heartbeats until `end`; runs in a thread."""
        told = False
        while not self._ended.wait(TRY_SECONDS):
            try:
                self.write_if_due()
                told = False
            except StorageError as error:
                if not told:
                    self.say(
                        f"{str(error).rstrip('.')}. The lock of {self.lock.run} is not renewed "
                        f"meanwhile; after {EXPIRE_SECONDS:.0f} s, the same command on another "
                        f"machine may take the run over."
                    )
                told = True
            except Exception as error:  # noqa: BLE001 - without heartbeats, the driver must not go on
                self.problem = error
                self.say(str(error))
                if self.interrupts:
                    interrupt_main()
                return
