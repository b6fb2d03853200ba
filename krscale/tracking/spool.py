"""The write-ahead spool: every event is written to disk before it is processed.

An event is one line of JSON in an append-only file. Its position is the number of bytes before it,
and its line ends in a checksum. The first line names the spool, which distinguishes runs in MLflow
from those of another run folder with the same keys.
"""

from __future__ import annotations

import json
import os
import re
import threading
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from krscale.files import append_whole

_CHECKSUM = re.compile(rb',"crc":([0-9]{1,10})\}$')
Operation = Literal["spool", "start", "log", "artifact", "model", "end"]


@dataclass(frozen=True)
class Event:
    """One thing to record.

    Attributes:
        op: `start` (name, parent, tags, params), `log` (metrics, step, tags), `artifact` (path,
            to), `model` (path, registration) or `end` (status).
        key: The run it belongs to.
        time_ms: Its time in milliseconds since 1970. MLflow recognises an event that is sent again
            with the same time, so a repetition after a crash duplicates nothing.
        content: What belongs to the operation; JSON-serialisable and finite.
    """

    op: Operation
    key: str
    time_ms: int
    content: dict[str, Any] = field(default_factory=dict)


def encode_event(event: Event) -> bytes:
    """Return the line of an event, with the checksum that `without_checksum` compares."""
    text = json.dumps(asdict(event), allow_nan=False, separators=(",", ":")).encode()
    return b'%s,"crc":%d}\n' % (text[:-1], zlib.crc32(text))


def without_checksum(line: bytes) -> bytes:
    """Return the JSON of a line without its checksum; lines of older versions have none.

    Raises:
        ValueError: If the line is not what was written.
    """
    found = _CHECKSUM.search(line)
    if found is None:
        return line
    text = line[: found.start()] + b"}"
    if zlib.crc32(text) != int(found[1]):
        raise ValueError("its checksum is another")
    return text


class Spool:
    """An append-only file of events; appending is safe from any thread.

    Args:
        path: The file; created if missing. An incomplete last line, left by a crash, is dropped.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._size = _whole_lines(self._file)
        os.ftruncate(self._file, self._size)
        if self._size == 0:
            self.append(Event("spool", uuid.uuid4().hex, 0))
        self.id = next(self.read(0))[0].key

    @property
    def size(self) -> int:
        """Bytes written, which is the position after the last event."""
        return self._size

    def append(self, event: Event) -> None:
        """Write one event.

        Raises:
            OSError: If the disk is full; the file is left without a torn line.
        """
        line = encode_event(event)
        with self._lock:
            append_whole(self._file, line, self.path)
            self._size += len(line)

    def read(self, position: int, count: int | None = None) -> Iterator[tuple[Event, int]]:
        """Yield events from a position on, each with the position after it.

        Args:
            position: Where to start; 0 or a position that was yielded before.
            count: How many to yield at most; None for all that are written when the call starts.
        """
        end = self._size
        with self.path.open("rb") as file:
            file.seek(position)
            while position < end and count != 0:
                line = file.readline()
                position += len(line)
                count = count - 1 if count is not None else None
                yield Event(**json.loads(without_checksum(line.rstrip(b"\n")))), position

    def is_boundary(self, position: int) -> bool:
        """Whether an event begins at this position, or the file ends there."""
        if not 0 < position <= self._size:
            return position == 0
        return os.pread(self._file, 1, position - 1) == b"\n"

    def close(self) -> None:
        """Flush to the disk and close; appending raises `OSError` from now on."""
        with self._lock:
            file, self._file = self._file, -1
            try:
                os.fsync(file)
            finally:
                os.close(file)


def _whole_lines(file: int) -> int:
    """Return the size of the file up to and including its last newline."""
    end = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - 65536)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
