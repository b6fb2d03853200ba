"""Writing files so that a crash, or a full disk, never leaves half of one under its real name."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from krscale.errors import DiskFullError


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then fsync and rename it into place.

    Raises:
        DiskFullError: If there is no room; nothing is left behind.
    """
    temporary = _beside(path)
    with _room_on_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _room_on_disk(path):
            write(temporary)
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, readable by people and stable under diff."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_atomic(path, lambda temporary: _write_text(temporary, text))


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends without an exception.

    A `path` that exists is replaced: it is moved aside first and deleted last, so that a crash at
    any moment leaves either the old folder or the new one under one of the two names.

    Raises:
        DiskFullError: If there is no room; nothing is left behind.
    """
    temporary = _beside(path)
    try:
        with _room_on_disk(path):
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.rglob("*"):
                _sync(file)
            _sync(temporary)
            aside = temporary.with_name(temporary.name + ".old")
            if path.exists():
                path.replace(aside)
            temporary.replace(path)
            _sync(path.parent)
            shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _beside(path: Path) -> Path:
    """Return a name nobody else uses, in the same folder.

    Not from `tempfile`, whose files only their owner may read: on the storage of a cluster, others
    read what is written here, as far as the umask lets them.
    """
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


@contextmanager
def _room_on_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        if not _is_disk_full(error, path.parent):
            raise
        raise DiskFullError(
            f"{path}: the disk is full. Nothing is left half written, and what was finished before "
            f"is kept: free some space and start again."
        ) from error


def _is_disk_full(error: Exception, folder: Path) -> bool:
    """Whether an error came of a full disk: torch and safetensors do not raise an `OSError`."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return os.statvfs(folder).f_bavail == 0


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
