"""The folder of a run and its copy in a storage: the driver works with the first."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from _thread import interrupt_main
from collections.abc import Callable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from krscale.errors import StorageError, UserError
from krscale.files import read_json, reading, write_json
from krscale.storage.address import is_plain, place_of
from krscale.storage.driver_lock import BEAT_SECONDS, DriverLock, Start
from krscale.storage.objects import Objects
from krscale.storage.run_files import (
    ARCHIVE,
    ORIGIN,
    UNFINISHED,
    Stamp,
    content_of,
    is_sent,
    picked_folder,
    rank,
    stamps,
    unpack,
)
from krscale.storage.trial_files import HERE

LOOK_SECONDS = 2.0
"""Between two looks for files that have changed."""
LIST_SECONDS = 5.0
"""Between two lists of what workers on other machines have sent."""
_MAX_SHARE = 0.1
"""Share of the time that sending may take while the search runs."""
_AT_ONCE = 8
RECORD = ".mirror.json"
"""File in a run folder: which start it is of, and what the storage has of it."""
FETCHING = ".fetching.lock"
"""File in a run folder that is locked while it is brought up to date: by a driver that begins, or
by a command that reads the run. Both at once would mix what each removes and writes."""
_DIGEST = ".digest.json"
_STUDENTS = "students"
_active: dict[str, RunMirror] = {}


@contextmanager
def mirrored(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Keep a run folder and its copy in the storage alike while this process is its driver.

    Args:
        folder: Of the run; whoever calls holds its lock on this machine. Nothing is done for one
            in no working folder.
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
    mirror = RunMirror(folder, Objects.open(place[0]), place[1], say)
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
                say(str(error))  # what ended the run is the error
    finally:
        os.close(here)


def gather(folder: Path) -> None:
    """Bring the students of a run that workers on other machines have sent."""
    if mirror := _active.get(str(folder)):
        mirror.gather()


def send(folder: Path) -> None:
    """Send what has changed in a run folder now: a worker elsewhere is to go on from it.

    Where that cannot be done the worker begins anew, and the folder is sent later.
    """
    if mirror := _active.get(str(folder)):
        with suppress(StorageError, FileNotFoundError):
            mirror.send()


def sign_of(folder: Path, path: Path) -> int | None:
    """Return when a worker on another machine last gave a sign; None if it never did."""
    mirror = _active.get(str(folder))
    return mirror.signs.get(path.relative_to(folder).as_posix()) if mirror else None


def discard(folder: Path, path: Path) -> None:
    """Let what a worker has sent of a trial be deleted in the storage, soon."""
    if mirror := _active.get(str(folder)):
        name = path.relative_to(folder).as_posix()
        mirror.discarded |= {name, name + ARCHIVE}


def refresh(folder: Path) -> None:
    """Bring a run folder up to date for reading, unless its last driver ran on this machine.

    Raises:
        StorageError: If the storage cannot be read.
    """
    place = place_of(folder)
    if place is None or str(folder) in _active:
        return
    objects = Objects.open(place[0])
    if RunMirror(folder, objects, place[1], print).is_current():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / FETCHING):
        mirror = RunMirror(folder, objects, place[1], print)  # a driver may have begun here
        if not mirror.is_current():
            mirror.fetch()


class RunMirror:
    """One run folder of this machine, and its copy.

    Args:
        folder: Of the run.
        objects: Of the storage.
        run: Key of the run in it.
        say: Takes a line for the user.

    Attributes:
        signs: Signs of workers on other machines: name -> a number that is another after each.
        discarded: Names of objects to delete once they are seen.
        number: Of the last start that this machine's folder is of; 0 for none.
        token: Of that start; empty where an older version wrote no more than its number.
    """

    def __init__(
        self, folder: Path, objects: Objects, run: str, say: Callable[[str], None]
    ) -> None:
        self.folder, self.objects, self.run, self.say = folder, objects, run, say
        self.lock = DriverLock(objects, run, say)
        self.signs: dict[str, int] = {}
        self.discarded: set[str] = set()
        self.number, self.token, self.sent = self._read_record()
        self._problem: UserError | None = None
        self._stopped = threading.Event()
        self._sending = threading.Lock()
        self._thread = threading.Thread(target=self._keep_up, name="run mirror", daemon=True)

    def begin(self) -> None:
        """Take the lock, bring the folder up to date, and keep the copy so from now on."""
        with FileLock(self.folder / FETCHING):
            before = self.lock.acquire()
            if before is None and self.is_copy():
                self.say(f"{self.run} was put there by no driver; fetching it")
                self.fetch()
            elif before is None:
                self.sent = {}  # whatever it had, the storage has no run of this name any more
            elif not self.is_of(before):
                self.say(f"{self.run} was last run elsewhere ({before.who}); fetching it")
                self.fetch()
            self.number, self.token = self.lock.start.number, self.lock.start.token
            self._write_record()
        self.gather()
        self._thread.start()

    def is_copy(self) -> bool:
        """Return whether the storage has a run that nobody ran there, and this machine has none.

        Somebody has copied it to the storage.
        """
        start = len(self.run) + 1
        return not self.number and any(is_sent(key[start:]) for key in self.objects.list(self.run))

    def is_current(self) -> bool:
        """Return whether this machine's folder is that of the last driver of any machine."""
        last = self.lock.last()
        return not self.is_copy() if last is None else self.is_of(last)

    def is_of(self, start: Start) -> bool:
        """Return whether this machine's folder is of a start.

        Numbers begin again at 1 where somebody has deleted the run in the storage.
        """
        return start.number == self.number and self.token in ("", start.token)

    def end(self) -> None:
        """Send what is left, and leave.

        Raises:
            StorageError: If that cannot be done; says where everything is.
        """
        self._stopped.set()
        self._thread.join()
        if self._problem and not isinstance(self._problem, StorageError):
            raise self._problem
        try:
            self.send()
            self._look_at_workers()
            self.lock.release()
        except StorageError as error:
            raise StorageError(
                f"{error} What is not in the storage is in {self.folder}; the same command on this "
                f"machine sends it."
            ) from None

    def send(self) -> None:
        """Send what has changed, and delete what is gone; see `run_files` for the order."""
        with self._sending:
            self._send()

    def _send(self) -> None:
        now = stamps(self.folder)
        # Weights before their digest, whose name is longer.
        changed = sorted(
            (name for name, stamp in now.items() if self.sent.get(name) != stamp),
            key=lambda name: (rank(name), name),
        )
        captured = {
            name: content
            for name in reversed(changed)
            if rank(name) > 1 and (content := self._content(name)) is not None
        }
        for name in changed:
            self._send_one(name, now[name], captured.get(name))
        gone = self.sent.keys() - now.keys()
        for name in gone:
            self.objects.delete(f"{self.run}/{name}")
            del self.sent[name]
        if changed or gone:
            self._write_record()

    def gather(self) -> None:
        """Bring students that other machines have sent since, after sending what is newer here."""
        self.send()
        there = self.objects.list(f"{self.run}/{_STUDENTS}")
        keys = [key for key in there if is_plain(key) and key.endswith(_DIGEST)]
        with self._sending, ThreadPoolExecutor(_AT_ONCE) as threads:
            list(threads.map(self._bring_student, keys))

    def fetch(self) -> None:
        """Replace the folder by what the storage has of the run, but for what was picked here."""
        with suppress(FileNotFoundError):
            (self.folder / RECORD).unlink()  # cut short, this folder is of no start
        start = len(self.run) + 1
        there = {key[start:] for key in self.objects.list(self.run) if is_plain(key)}
        sent = {name for name in there if is_sent(name)}
        picked = self._picked_here(sent)
        names = {name for name in sent if picked_folder(name) not in picked}
        for name in stamps(self.folder).keys() - names:
            if picked_folder(name) not in picked:
                self._remove(name)
        for group in range(5, -1, -1):  # what refers first: all that it refers to was sent before
            with ThreadPoolExecutor(_AT_ONCE) as threads:
                list(threads.map(self._bring, (n for n in names if rank(n) == group)))
        self.sent = {name: stamp for name, stamp in stamps(self.folder).items() if name in names}
        self.sent |= dict.fromkeys(sent - names, (0, 0))  # replaced by what was picked here

    def _picked_here(self, sent: Set[str]) -> set[str]:
        """Return the exports and refits of this run that were made here and have not been sent.

        Those of other data or of another teacher are of a run of this name that is gone.
        """
        origin = self.folder / ORIGIN
        own = origin.read_bytes() if origin.is_file() else None
        if own != self.objects.read(f"{self.run}/{ORIGIN}"):
            return set()
        return {picked_folder(name) for name in stamps(self.folder).keys() - sent} - {""}

    def _keep_up(self) -> None:
        """Look, send and give signs of life until the driver ends; in a thread."""
        next_beat, next_list, next_send, told = time.monotonic() + BEAT_SECONDS, 0.0, 0.0, False
        while not self._stopped.wait(LOOK_SECONDS):
            try:
                now = time.monotonic()
                if now >= next_beat:
                    next_beat = now + BEAT_SECONDS
                    self.lock.beat()
                if now >= next_list:
                    next_list = now + LIST_SECONDS
                    self._look_at_workers()
                # Where another thread sends or brings, it is not waited for: signs of life are due.
                if now >= next_send and self._sending.acquire(blocking=False):
                    try:
                        self._send()
                    finally:
                        self._sending.release()
                    took = time.monotonic() - now
                    next_send = now + took / _MAX_SHARE
                told = False
            except FileNotFoundError:
                continue  # a file that was removed or replaced meanwhile
            except (StorageError, OSError) as error:
                if not told:
                    text = str(error).rstrip(".")
                    self.say(f"{text}. The search goes on, and what it writes is sent later.")
                told = True
            except UserError as error:  # another driver has taken over
                self._problem = error
                self.say(str(error))
                interrupt_main()
                return

    def _look_at_workers(self) -> None:
        start = len(self.run) + 1
        for key, info in self.objects.list(f"{self.run}/{UNFINISHED}").items():
            name = key[start:]
            if name in self.discarded:
                self.objects.delete(key)
                self.signs.pop(name, None)
            elif name.endswith(".sign"):
                self.signs[name] = info.time_ns

    def _content(self, name: str) -> bytes | None:
        try:
            return content_of(self.folder, name)
        except FileNotFoundError:
            return None  # removed since

    def _send_one(self, name: str, stamp: Stamp, captured: bytes | None) -> None:
        key, path = f"{self.run}/{name}", self.folder / name
        if rank(name) > 1 or name.startswith(f"{UNFINISHED}/"):
            content = captured if rank(name) > 1 else self._content(name)
            if content is None:
                return
            if rank(name) < 2 and stamps(self.folder).get(name) != stamp:
                return  # another checkpoint has taken its place; the next look sees it
            self.objects.write(key, content)
        else:
            if name + _DIGEST in self.sent:
                self.objects.delete(key + _DIGEST)  # of the file that is replaced
                del self.sent[name + _DIGEST]
            try:
                self.objects.upload(key, path)
            except StorageError:
                if path.exists():
                    raise
                return
        self.sent[name] = stamp

    def _bring_student(self, key: str) -> None:
        name = key[len(self.run) + 1 :]
        path = self.folder / name
        if path.is_file() and path.read_bytes() == self.objects.read(key):
            return
        for part in (name.removesuffix(_DIGEST), name):
            self._bring(part)
            stat = (self.folder / part).stat()
            self.sent[part] = (stat.st_size, stat.st_mtime_ns)

    def _bring(self, name: str) -> None:
        key = f"{self.run}/{name}"
        if not (name.startswith(f"{UNFINISHED}/") and name.endswith(ARCHIVE)):
            self.objects.download(key, self.folder / name)
        elif (content := self.objects.read(key)) is not None:
            path = self.folder / name.removesuffix(ARCHIVE)
            path.parent.mkdir(parents=True, exist_ok=True)
            unpack(content, path, f"storage_path: {self.objects.uri}: {key}")

    def _remove(self, name: str) -> None:
        if name.startswith(f"{UNFINISHED}/"):
            shutil.rmtree(self.folder / name.removesuffix(ARCHIVE), ignore_errors=True)
        else:
            (self.folder / name).unlink(missing_ok=True)

    def _read_record(self) -> tuple[int, str, dict[str, Stamp]]:
        path = self.folder / RECORD
        if not path.is_file():
            return 0, "", {}
        try:
            with reading(path):
                content: dict[str, Any] = read_json(path)
                sent = {str(name): (int(s[0]), int(s[1])) for name, s in content["sent"].items()}
                return int(content["number"]), str(content.get("token", "")), sent
        except UserError:
            return 0, "", {}

    def _write_record(self) -> None:
        content = {"number": self.number, "token": self.token, "sent": self.sent}
        write_json(self.folder / RECORD, content)
