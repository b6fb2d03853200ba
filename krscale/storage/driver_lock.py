"""The lock of a run in a storage: one driver at a time, and every start has a number.

pyarrow has no write that fails if an object exists. So a driver writes its record, waits, and
checks that the record is still its own. It checks again at every heartbeat.
"""

from __future__ import annotations

import json
import os
import platform
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from krscale.errors import StorageError, UserError
from krscale.files import read_json, write_json
from krscale.storage.address import storages_root, working_folder
from krscale.storage.objects import Objects

LOCK_FILE = ".driver.json"
BEAT_SECONDS = 10.0
EXPIRE_SECONDS = 45.0
"""A driver without a heartbeat for this long is considered dead."""
SETTLE_SECONDS = 0.5


@dataclass(frozen=True)
class Start:
    """One start of a driver, as recorded in the storage.

    Attributes:
        number: One more than the number of the previous start.
        token: Unique to this start.
        machine: The machine (`machine_id` and its name) and the name of its working folder.
        who: The driver's process and machine in readable form.
        beat: Number of heartbeats so far.
        ended: Whether the driver has released the lock.
    """

    number: int
    token: str
    machine: str
    who: str
    beat: int = 0
    ended: bool = False


def machine_id() -> str:
    """Return the identifier of this machine's working folders; it is created once."""
    file = storages_root() / ".machine"
    if not file.is_file():
        write_json(file, {"machine": uuid.uuid4().hex})
    return str(read_json(file)["machine"])


class DriverLock:
    """This process's lock of a run.

    Args:
        objects: Objects of the storage.
        run: Key of the run's folder in it.
        say: Takes a line for the user.
        sleep: Replaced in tests.
        clock: Seconds; replaced in tests.
    """

    def __init__(
        self,
        objects: Objects,
        run: str,
        say: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.objects, self.run, self.say = objects, run, say
        self.sleep, self.clock = sleep, clock
        self.key = f"{run}/{LOCK_FILE}"
        # Several URIs may name the same storage: each has its own folder and lock.
        # Machines that were copied from one image share its working folders, and so the identifier.
        machine = f"{machine_id()}/{platform.node()}/{working_folder(objects.uri).name}"
        self.start = Start(0, uuid.uuid4().hex, machine, _me())

    def acquire(self) -> Start | None:
        """Acquire the lock; return the previous start, or None if this is the first.

        The caller holds the lock of this machine's folder of the run, so a driver of this machine
        that has not released the lock is dead.

        Raises:
            UserError: If another driver runs the run.
        """
        before = self._read()
        if before and not before.ended and before.machine != self.start.machine:
            self._refuse_living(before)
        number = before.number + 1 if before else 1
        self.start = replace(self.start, number=number)
        self._write()
        self.sleep(SETTLE_SECONDS)
        now = self._read()
        if now != self.start:
            raise self._taken(now)
        return before

    def last(self) -> Start | None:
        """Return the last start of any driver; None if there was none."""
        return self._read()

    def beat(self) -> None:
        """Write a heartbeat.

        Raises:
            UserError: If another driver has taken over.
        """
        now = self._read()
        if now is None or now.token != self.start.token:
            raise self._taken(now)
        self.start = replace(self.start, beat=self.start.beat + 1)
        self._write()

    def release(self) -> None:
        """Record that this driver has ended, unless another has taken over."""
        now = self._read()
        if now is not None and now.token == self.start.token:
            self.start = replace(self.start, ended=True)
            self._write()

    def _refuse_living(self, before: Start) -> None:
        """Wait until the previous driver has ended or is considered dead; raise if it is alive."""
        left = EXPIRE_SECONDS - self._age()
        if left > 0:
            self.say(
                f"{self.run}: {before.who} has not left this run; waiting up to {left:.0f} s for a "
                f"sign that it lives"
            )
        until = self.clock() + left
        while self.clock() < until:
            self.sleep(1.0)
            now = self._read()
            if now is None or now.ended:
                return
            if now != before:
                raise self._taken(now)

    def _age(self) -> float:
        """Return the seconds since the last driver's last write, by the storage's clock."""
        told, key = self.objects.info(self.key), f"{self.run}/.clock-{self.start.token}"
        self.objects.write(key, b"1")
        now = self.objects.info(key)
        self.objects.delete(key)
        if told is None or now is None or not told.time_ns or not now.time_ns:
            return 0.0
        return max(0.0, (now.time_ns - told.time_ns) / 1e9)

    def _taken(self, start: Start | None) -> UserError:
        who = start.who if start else "nobody (somebody has deleted its record)"
        if "/" in self.run:  # a teacher that is trained on workers: no run of this name
            return UserError(
                f"storage_path: {self.objects.uri}/{self.run} is being trained now by {who}. Wait "
                f"for it."
            )
        return UserError(
            f"name: run {self.run!r} of {self.objects.uri} is being run now by {who}. Wait for it, "
            f"or choose another name."
        )

    def _read(self) -> Start | None:
        content = self.objects.read(self.key)
        if content is None:
            return None
        try:
            found: dict[str, Any] = json.loads(content)
            return Start(**found)
        except (ValueError, TypeError):
            raise StorageError(
                f"storage_path: {self.objects.uri}: {self.key} is not what was written. If no "
                f"driver runs this run, delete it."
            ) from None

    def _write(self) -> None:
        self.objects.write(self.key, (json.dumps(asdict(self.start)) + "\n").encode())


def _me() -> str:
    now = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
    return f"process {os.getpid()} on {platform.node()}, since {now}"
