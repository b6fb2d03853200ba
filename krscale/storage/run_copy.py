"""Transfer of files between a run folder and its copy in a storage."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from krscale.errors import StorageError, UserError
from krscale.files import read_json, reading, write_json
from krscale.storage.address import is_plain
from krscale.storage.driver_lock import Start
from krscale.storage.objects import Objects
from krscale.storage.run_files import (
    ARCHIVE,
    ORIGIN,
    Stamp,
    archive_of,
    content_of,
    is_archive,
    is_sent,
    picked_folder,
    rank,
    stamps,
    unpack,
)

RECORD = ".mirror.json"
"""File in a run folder: the start that the folder belongs to, and the files the storage has."""
FETCHING = ".fetching.lock"
"""File in a run folder that is locked while the folder is updated: by a driver that starts, or by a
command that reads the run. Both at once would mix what each removes and writes."""
_AT_ONCE = 8
_DIGEST = ".digest.json"
_STUDENTS = "students"


class RunCopy:
    """The copy of a run in a storage, in relation to this machine's folder of the run.

    Args:
        folder: Folder of the run on this machine.
        objects: Objects of the storage.
        run: Key of the run in it.

    Attributes:
        number: Number of the start that this machine's folder belongs to; 0 for none.
        token: Token of that start; empty if an older version wrote only the number.
        sent: Files of this folder that the storage has, with their stamps.
        before_each: Called before each object is sent, fetched or deleted, possibly by several
            threads at once.
    """

    def __init__(self, folder: Path, objects: Objects, run: str) -> None:
        self.folder, self.objects, self.run = folder, objects, run
        self.number, self.token, self.sent = self._read_record()
        self.before_each: Callable[[], None] = _pass_over
        self._exchanging = threading.Lock()

    def is_there(self) -> bool:
        """Return whether the storage has a run although this machine's folder is of no start.

        If no driver has run it there either, somebody has copied it to the storage.
        """
        start = len(self.run) + 1
        return not self.number and any(is_sent(key[start:]) for key in self.objects.list(self.run))

    def is_current(self, last: Start | None) -> bool:
        """Return whether this machine's folder belongs to the run's last start.

        Args:
            last: The last start on any machine; None if the storage has none.
        """
        return not self.is_there() if last is None else self.is_of(last)

    def is_of(self, start: Start) -> bool:
        """Return whether this machine's folder belongs to a start.

        Numbers begin again at 1 if somebody has deleted the run in the storage.
        """
        return start.number == self.number and self.token in ("", start.token)

    def begin(self, start: Start) -> None:
        """Record that this machine's folder belongs to a start from now on."""
        self.number, self.token = start.number, start.token
        self._write_record()

    def send(self, *, wait: bool = True) -> bool:
        """Send changed files, and delete those that are gone; see `run_files` for the order.

        Args:
            wait: Whether to wait for another thread that is transferring; else nothing is done.

        Returns:
            Whether it was done.
        """
        if not self._exchanging.acquire(blocking=wait):
            return False
        try:
            self._send()
        finally:
            self._exchanging.release()
        return True

    def gather(self) -> None:
        """Send changed files, then fetch students that other machines have sent."""
        self.send()
        there = self.objects.list(f"{self.run}/{_STUDENTS}")
        keys = [key for key in there if is_plain(key) and key.endswith(_DIGEST)]
        with self._exchanging, ThreadPoolExecutor(_AT_ONCE) as threads:
            list(threads.map(self._bring_student, keys))

    def fetch(self) -> None:
        """Replace the folder with the storage's copy of the run, but keep what was picked here."""
        with suppress(FileNotFoundError):
            (self.folder / RECORD).unlink()  # if interrupted, the folder belongs to no start
        start = len(self.run) + 1
        there = {key[start:] for key in self.objects.list(self.run) if is_plain(key)}
        sent = {name for name in there if is_sent(name)}
        picked = self._picked_here(sent)
        names = {
            name
            for name in sent
            # A checkpoint may also be there as files: of an older krscale, or copied by hand.
            if picked_folder(name) not in picked and archive_of(name) not in sent
        }
        for name in stamps(self.folder).keys() - names:
            if picked_folder(name) not in picked:
                self._remove(name)
        for group in range(5, -1, -1):  # referring files first: what they refer to was sent before
            with ThreadPoolExecutor(_AT_ONCE) as threads:
                list(threads.map(self._bring, (n for n in names if rank(n) == group)))
        self.sent = {name: stamp for name, stamp in stamps(self.folder).items() if name in names}
        # The next send deletes the rest there: replaced by picks made here, or checkpoint files.
        self.sent |= dict.fromkeys(sent - self.sent.keys(), (0, 0))

    def _picked_here(self, sent: Set[str]) -> set[str]:
        """Return the exports and refits of this run that were made here and have not been sent.

        Those of other data or of another teacher belong to a former run of this name.
        """
        origin = self.folder / ORIGIN
        own = origin.read_bytes() if origin.is_file() else None
        if own != self.objects.read(f"{self.run}/{ORIGIN}"):
            return set()
        there = sent | {archive_of(name) for name in sent}  # as an older krscale sent checkpoints
        return {picked_folder(name) for name in stamps(self.folder).keys() - there} - {""}

    def _send(self) -> None:
        now = stamps(self.folder)
        # Weights are sent before their digest, whose name is longer.
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
            self.before_each()
            self.objects.delete(f"{self.run}/{name}")
            del self.sent[name]
        if changed or gone:
            self._write_record()

    def _content(self, name: str) -> bytes | None:
        try:
            return content_of(self.folder, name)
        except FileNotFoundError:
            return None  # removed since

    def _send_one(self, name: str, stamp: Stamp, captured: bytes | None) -> None:
        self.before_each()
        key, path = f"{self.run}/{name}", self.folder / name
        if rank(name) > 1 or is_archive(name):
            content = captured if rank(name) > 1 else self._content(name)
            if content is None:
                return
            if rank(name) < 2 and stamps(self.folder).get(name) != stamp:
                return  # replaced by another checkpoint, which the next call sends
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
        self.before_each()
        key = f"{self.run}/{name}"
        if not is_archive(name):
            self.objects.download(key, self.folder / name)
        elif (content := self.objects.read(key)) is not None:
            path = self.folder / name.removesuffix(ARCHIVE)
            path.parent.mkdir(parents=True, exist_ok=True)
            unpack(content, path, f"storage_path: {self.objects.uri}: {key}")

    def _remove(self, name: str) -> None:
        if is_archive(name):
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


def _pass_over() -> None:
    """Do nothing."""
