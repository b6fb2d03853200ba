"""Unfinished files and folders of killed processes, which the next start removes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?:[0-9a-f]{32}|[a-z0-9_]{8})")
"""Temporary names of `files.new_folder` and `write_atomic`, and of folders made by `tempfile`."""
_UNFINISHED = ".unfinished"


def hidden_lock(path: Path) -> Path:
    """Return the lock file of a folder, if it is a hidden file beside it."""
    return path.with_name(f".{path.name}.lock")


def unfinished_folder(path: Path) -> Path:
    """Return the folder for the checkpoints of a long training whose result will be in `path`.

    It shares the lock of `path`, and stays when its writer ends: the next start continues from it.
    """
    return path.with_name(f".{path.name}{_UNFINISHED}")


def unfinished_folders(parent: Path) -> dict[Path, Path]:
    """Return the folders of `unfinished_folder` in `parent`, each with the folder of its result."""
    return {
        path: parent / path.name.removeprefix(".").removesuffix(_UNFINISHED)
        for path in sorted(parent.glob(f".*{_UNFINISHED}"))
        if path.is_dir() and not path.is_symlink()
    }


def sweep_leftovers(folder: Path, lock_of: Callable[[Path], Path] = hidden_lock) -> None:
    """Remove unfinished files and folders whose writers have ended; those of running ones stay.

    Args:
        folder: The folder that holds them, and the finished ones.
        lock_of: Returns, for the path that is being written, the lock that its writer holds
            meanwhile. The system releases the locks of a process however it ends.
    """
    for path in folder.glob(".*"):
        found = _TEMPORARY.fullmatch(path.name)
        if found is None or path.is_symlink():
            continue
        with (
            suppress(Timeout, OSError),
            FileLock(lock_of(folder / found["name"]), timeout=0),
        ):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
