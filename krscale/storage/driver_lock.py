"""The lock of a run in a storage: one driver at a time, and each start of one has a number.

pyarrow offers no write that fails where an object exists. So a driver writes itself down, waits,
and looks whether it still stands there; and it looks again at each of its signs of life.
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
"""Without a sign of life for so long, a driver is taken to be gone."""
SETTLE_SECONDS = 0.5


@dataclass(frozen=True)
class Start:
    """One start of a driver, as the storage keeps it.

    Attributes:
        number: Of the start; each has the next.
        token: Of this start alone.
        machine: Where it runs (`machine_id`), and in which of that machine's working folders.
        who: The same for people.
        beat: Signs of life so far.
        ended: Whether it has left.
    """

    number: int
    token: str
    machine: str
    who: str
    beat: int = 0
    ended: bool = False


def machine_id() -> str:
    """Return what tells this machine's working folders from another's; made once."""
    file = storages_root() / ".machine"
    if not file.is_file():
        write_json(file, {"machine": uuid.uuid4().hex})
    return str(read_json(file)["machine"])


class DriverLock:
    """This process's lock of a run.

    Args:
        objects: Of the storage.
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
        # One storage may be named by several URIs: each has a folder, and a lock, of its own.
        machine = f"{machine_id()}/{working_folder(objects.uri).name}"
        self.start = Start(0, uuid.uuid4().hex, machine, _me())

    def acquire(self) -> Start | None:
        """Take the lock; return the start before this one, None for the first.

        Whoever calls holds the lock of this machine's folder of the run, so a driver of this
        machine that has not left is dead.

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
        """Give a sign of life.

        Raises:
            UserError: If another driver has taken over meanwhile.
        """
        now = self._read()
        if now is None or now.token != self.start.token:
            raise self._taken(now)
        self.start = replace(self.start, beat=self.start.beat + 1)
        self._write()

    def release(self) -> None:
        """Say that this driver is done; nothing is done where another has taken over."""
        now = self._read()
        if now is not None and now.token == self.start.token:
            self.start = replace(self.start, ended=True)
            self._write()

    def _refuse_living(self, before: Start) -> None:
        """Return once the driver before is taken to be gone."""
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
        """Return how long ago the storage was last told of the driver before, by its own clock."""
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
