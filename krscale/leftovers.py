"""What a killed process leaves of a folder that it was writing: swept by the next start."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?:[0-9a-f]{32}|[a-z0-9_]{8})")
"""Names of `files.new_folder` and `write_atomic`, and of folders that `tempfile` makes there."""
_UNFINISHED = ".unfinished"


def hidden_lock(path: Path) -> Path:
    """Return the lock of a folder whose lock is a hidden file beside it."""
    return path.with_name(f".{path.name}.lock")


def unfinished_folder(path: Path) -> Path:
    """Return where the checkpoints of a long training are until its result is in a folder.

    It has the lock of that folder, and stays when its writer ends: the next start goes on from it.
    """
    return path.with_name(f".{path.name}{_UNFINISHED}")


def unfinished_folders(parent: Path) -> dict[Path, Path]:
    """Return the folders of `unfinished_folder` in a folder, each with what it was to become."""
    return {
        path: parent / path.name.removeprefix(".").removesuffix(_UNFINISHED)
        for path in sorted(parent.glob(f".*{_UNFINISHED}"))
        if path.is_dir() and not path.is_symlink()
    }


def sweep_leftovers(folder: Path, lock_of: Callable[[Path], Path] = hidden_lock) -> None:
    """Remove unfinished files and folders whose writers are gone; those of running ones stay.

    Args:
        folder: What holds them, and what they were to become.
        lock_of: From what is written to the lock that its writer holds meanwhile. The system
            releases the lock of a process that ends in any way.
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
