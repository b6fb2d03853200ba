"""The driver of a run in a storage: its lock, and the threads that send and look for files."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock

from krscale.errors import StorageError, UserError
from krscale.storage.address import place_of
from krscale.storage.driver_lock import DriverLock
from krscale.storage.heartbeats import Heartbeats
from krscale.storage.objects import Objects
from krscale.storage.run_copy import FETCHING, RunCopy
from krscale.storage.run_files import ARCHIVE, UNFINISHED
from krscale.storage.trial_files import HERE

LOOK_SECONDS = 2.0
"""Time between two checks for changed files."""
LIST_SECONDS = 5.0
"""Time between two listings of what workers on other machines have sent."""
_MAX_SHARE = 0.1
"""Share of the time that sending takes at most while the search runs, if it is soon done."""
_MAX_PAUSE = 60.0
"""Longest time in seconds between two sendings: if the machine is lost, so is what was written
meanwhile."""
_active: dict[str, RunMirror] = {}


@contextmanager
def mirrored(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Keep a run folder and its copy in the storage the same while this process is its driver.

    Args:
        folder: Folder of the run; the caller holds its lock on this machine. Nothing is done for a
            folder outside every working folder.
        say: Takes a line for the user.

    Raises:
        UserError: If another driver runs the run.
        StorageError: If the storage cannot be read at the start, or written at the end.
    """
    place = place_of(folder)
    if place is None:
        yield
        return
    here = os.open(folder / HERE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    fcntl.flock(here, fcntl.LOCK_EX)
    mirror = RunMirror(RunCopy(folder, Objects.open(place[0]), place[1]), say)
    try:
        mirror.begin()
        _active[str(folder)] = mirror
        failed = False
        try:
            yield
        except Exception:
            failed = True
            raise
        finally:
            del _active[str(folder)]
            try:
                mirror.end()
            except UserError as error:
                if not failed:
                    raise
                say(str(error))  # the error that ended the run is raised
    finally:
        os.close(here)


def gather(folder: Path) -> None:
    """Fetch the students of a run that workers on other machines have sent."""
    if mirror := _active.get(str(folder)):
        mirror.copy.gather()


def send(folder: Path) -> None:
    """Send changed files of a run folder now, as a worker on another machine continues from them.

    If this fails, the worker starts from the beginning, and the files are sent later.
    """
    if mirror := _active.get(str(folder)):
        with suppress(UserError, FileNotFoundError):  # the mirror's thread reports another driver
            mirror.copy.send()


def sign_of(folder: Path, path: Path) -> int | None:
    """Return the time of the last sign from a worker on another machine; None if there is none."""
    mirror = _active.get(str(folder))
    return mirror.signs.get(path.relative_to(folder).as_posix()) if mirror else None


def discard(folder: Path, path: Path) -> None:
    """Mark the objects that a worker has sent of a trial for deletion in the storage."""
    if mirror := _active.get(str(folder)):
        name = path.relative_to(folder).as_posix()
        mirror.discarded |= {name, name + ARCHIVE}


def refresh(folder: Path) -> None:
    """Update a run folder for reading, unless its last driver ran on this machine.

    Raises:
        StorageError: If the storage cannot be read.
    """
    place = place_of(folder)
    if place is None or str(folder) in _active:
        return
    objects, run = Objects.open(place[0]), place[1]
    lock = DriverLock(objects, run, print)
    if RunCopy(folder, objects, run).is_current(lock.last()):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / FETCHING):
        copy = RunCopy(folder, objects, run)  # a driver may have started here meanwhile
        if not copy.is_current(lock.last()):
            copy.fetch()


@contextmanager
def newest(folder: Path, name: str) -> Iterator[Path]:
    """Yield a file of a run as its last driver left it; the run folder itself is not changed.

    Args:
        folder: Folder of the run.
        name: Of the file, which need not exist.

    Raises:
        StorageError: If the storage cannot be read.
    """
    place = place_of(folder)
    if place is None or str(folder) in _active:
        yield folder / name
        return
    objects, run = Objects.open(place[0]), place[1]
    if RunCopy(folder, objects, run).is_current(DriverLock(objects, run, print).last()):
        yield folder / name
        return
    with TemporaryDirectory() as temporary:
        path = Path(temporary) / name
        if objects.info(f"{run}/{name}") is not None:
            objects.download(f"{run}/{name}", path)
        yield path


class RunMirror:
    """A driver's lock of a run, and the threads that keep the run's copy up to date.

    Args:
        copy: Copy of the run.
        say: Takes a line for the user.

    Attributes:
        heartbeats: The heartbeats of the driver.
        signs: Signs from workers on other machines: name -> a number that changes with each sign.
        discarded: Names of objects to delete once they are listed.
    """

    def __init__(self, copy: RunCopy, say: Callable[[str], None]) -> None:
        self.copy, self.say = copy, say
        self.lock = DriverLock(copy.objects, copy.run, say)
        self.heartbeats = Heartbeats(self.lock, say)
        self.signs: dict[str, int] = {}
        self.discarded: set[str] = set()
        copy.before_each = self.heartbeats.write_if_due
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=work, name="run mirror", daemon=True)
            for work in (self._keep_up, self._watch)
        ]

    def begin(self) -> None:
        """Acquire the lock, update the folder, and keep the copy up to date from now on."""
        copy = self.copy
        try:
            with FileLock(copy.folder / FETCHING):
                before = self.lock.acquire()
                self.heartbeats.begin()
                if before is None and copy.is_there():
                    self.say(f"{copy.run} was put there by no driver; fetching it")
                    copy.fetch()
                elif before is None:
                    copy.sent = {}  # the storage has no run of this name (any more)
                elif not copy.is_of(before):
                    self.say(f"{copy.run} was last run elsewhere ({before.who}); fetching it")
                    copy.fetch()
                copy.begin(self.lock.start)
            copy.gather()
            self.heartbeats.interrupts = True
            self.heartbeats.check()
        except BaseException:
            self.heartbeats.end()
            raise
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Send what is left, and release the lock.

        Raises:
            StorageError: If that fails; the message says where the files are.
            UserError: If another driver has taken over.
        """
        self.heartbeats.interrupts = False
        self._stopped.set()
        try:
            for thread in self._threads:
                thread.join()
            self.heartbeats.check()
            self.copy.send()
            self._look_at_workers()
            self.heartbeats.end()  # a heartbeat after the release would take it back
            self.heartbeats.check()
            self.lock.release()
        except StorageError as error:
            raise StorageError(
                f"{error} What is not in the storage is in {self.copy.folder}; the same command on "
                "this machine sends it."
            ) from None
        finally:
            self.heartbeats.end()

    def _keep_up(self) -> None:
        """Send what has changed until the driver ends; runs in a thread."""
        next_send, told = 0.0, False
        while not self._stopped.wait(LOOK_SECONDS):
            try:
                now = time.monotonic()
                if now >= next_send and self.copy.send(wait=False):
                    next_send = _after(now, time.monotonic())
                told = False
            except FileNotFoundError:
                continue  # a file that was removed or replaced meanwhile
            except (StorageError, OSError) as error:
                if not told:
                    text = str(error).rstrip(".")
                    self.say(f"{text}. The search goes on, and what it writes is sent later.")
                told = True
            except UserError as error:  # another driver has taken over
                self.heartbeats.problem = error  # `heartbeats` ends this one
                return

    def _watch(self) -> None:
        """Look at what workers have sent until the driver ends; runs in a thread of its own.

        A single object may take longer to send than a trial may be without a sign of progress.
        """
        while not self._stopped.wait(LIST_SECONDS):
            try:
                self._look_at_workers()
            except StorageError:
                continue  # `heartbeats` reports a storage that does not answer
            except UserError:
                return  # another driver has taken over: `heartbeats` ends this one

    def _look_at_workers(self) -> None:
        start = len(self.copy.run) + 1
        for key, info in self.copy.objects.list(f"{self.copy.run}/{UNFINISHED}").items():
            name = key[start:]
            if name in self.discarded:
                self.heartbeats.write_if_due()  # another driver may go on from it
                self.copy.objects.delete(key)
                self.signs.pop(name, None)
            elif name.endswith(".sign"):
                self.signs[name] = info.time_ns


def _after(began: float, ended: float) -> float:
    """Return when the next sending may begin after one that began and ended at these times."""
    return min(began + (ended - began) / _MAX_SHARE, ended + _MAX_PAUSE)
