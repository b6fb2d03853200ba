"""Limit what a machine keeps of storages: unused folders go, least recently opened first."""

from __future__ import annotations

import fcntl
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from krscale.errors import UserError
from krscale.files import read_json, reading
from krscale.storage.address import storages_root

DEFAULT_GB = 100.0
_UNFETCHED = "unfetched"
_limit = {"bytes": DEFAULT_GB * 1e9}
_held: dict[tuple[int, str], int] = {}


def limit_room(gigabytes: float) -> None:
    """Set how much this process lets its machine keep (`cluster.cache_gb`)."""
    _limit["bytes"] = gigabytes * 1e9


def record_of(path: Path) -> Path:
    """Return the file beside a folder that records that the storage has it, and its size."""
    return path.with_name(f".{path.name}.sent")


def fetch_lock(path: Path) -> Path:
    """Return the lock that a process holds while it fetches a folder."""
    return path.with_name(f".{path.name}.fetch")


def unfetched(path: Path) -> Path:
    """Return the path of a folder while it is being fetched.

    `krscale.leftovers` does not remove this name: a process that fetches a folder does not hold
    the lock of a process that makes it.
    """
    return path.with_name(f".{path.name}.{_UNFETCHED}")


def hold(path: Path) -> None:
    """Keep a folder from being removed while this process lives, and note that it was opened.

    Args:
        path: The folder; it need not exist yet.
    """
    file = _use_file(path)
    key = (os.getpid(), str(path))
    if key not in _held:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        _held[key] = descriptor
    os.utime(_held[key])


def make_room(num_bytes: int) -> None:
    """Remove folders that the storage has and no process holds, until `num_bytes` more fit.

    They must fit both within the limit and onto the disk. If all remaining folders are in use, the
    machine exceeds its limit without an error, since a trial needs the new folder to continue.
    """
    _sweep()
    kept = sorted(_kept(), key=lambda entry: entry[0])
    above_limit = num_bytes + sum(size for _, size, _ in kept) - _limit["bytes"]
    missing = max(above_limit, num_bytes - _free_bytes())
    for _, size, path in kept:
        if missing <= 0:
            return
        if _remove(path):
            missing -= size


def _free_bytes() -> float:
    """Return the free space of the disk in bytes; infinity if it is unknown."""
    with suppress(OSError):
        return shutil.disk_usage(storages_root()).free
    return math.inf


def _sweep() -> None:
    """Remove partly fetched folders of processes that were killed."""
    for part in storages_root().glob(f"*/cache/*/.*.{_UNFETCHED}"):
        path = part.with_name(part.name[1:].removesuffix(f".{_UNFETCHED}"))
        with suppress(Timeout, OSError), FileLock(fetch_lock(path), timeout=0):
            shutil.rmtree(part, ignore_errors=True)


def _use_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.used")


def _kept() -> Iterator[tuple[float, int, Path]]:
    """Yield each folder that the storage has as well: its time of opening, size and path."""
    for record in storages_root().glob("*/cache/*/.*.sent"):
        path = record.with_name(record.name[1:].removesuffix(".sent"))
        with suppress(OSError, UserError), reading(record):
            size = int(read_json(record)["num_bytes"])
            opened = _use_file(path)
            yield (opened.stat().st_mtime if opened.exists() else 0.0, size, path)


def _remove(path: Path) -> bool:
    """Remove a folder unless a process holds it."""
    descriptor = os.open(_use_file(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        # Renamed first: half a folder under its own name would count as complete.
        doomed = path.with_name(f".{path.name}.going")
        shutil.rmtree(doomed, ignore_errors=True)
        with suppress(OSError):
            path.rename(doomed)
        record_of(path).unlink(missing_ok=True)
        shutil.rmtree(doomed, ignore_errors=True)
        return True
    finally:
        os.close(descriptor)
