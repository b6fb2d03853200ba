"""Find what no run in a storage needs, and remove it once the user has agreed."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from krscale.data.given import given_folder
from krscale.errors import UserError
from krscale.leftovers import hidden_lock, unfinished_folders
from krscale.runs.experiment_file import EXPERIMENT_FILE, read_experiment
from krscale.runs.origin import ENVIRONMENT_FILE
from krscale.runs.verify_cache import Shared
from krscale.runs.verify_files import folders_in

RAY_TUNE = "tune"
"""Folder of a run in which Ray Tune keeps its own records; krscale reads none of them."""
_OF_A_RUN = frozenset((EXPERIMENT_FILE, ENVIRONMENT_FILE, "curve.json", "journal.log"))
"""Any of these files marks a run, even if its experiment is lost; what it used is then unknown."""
_CACHED = ("data", "teachers", "stores")
_OF_NO_RUN = "of no run that is here; the command that needs it makes it again"
_TRAINED = "of no run that is here (`krscale teach` makes none); it would be trained again"
_UNFINISHED = "a teacher of no run that is here, half trained; its training would begin anew"


@dataclass(frozen=True)
class Unused:
    """A folder that may be removed.

    Attributes:
        path: The folder.
        num_bytes: Total size of its files.
        reason: Why no run needs it, and what makes it again.
        lock: Lock that a process holds while it writes or reads the folder.
    """

    path: Path
    num_bytes: int
    reason: str
    lock: Path


def find_unused(storage: Path) -> tuple[list[Unused], list[str]]:
    """Return the folders that no run of a storage needs, and why some were not examined.

    Folders of runs, their students, records and exports are never returned.

    Args:
        storage: Folder of all runs.
    """
    runs = [f for f in folders_in(storage) if any(e.name in _OF_A_RUN for e in f.iterdir())]
    found = [
        Unused(run / RAY_TUNE, _size(run / RAY_TUNE), "Ray's own records", run / ".lock")
        for run in runs
        if (run / RAY_TUNE).is_dir() and not run.is_symlink() and not (run / RAY_TUNE).is_symlink()
    ]
    used: set[Path] = set()
    notes: list[str] = []
    for run in runs:
        try:
            shared = Shared.of(read_experiment(run))
        except UserError as error:
            why = f"data, teachers and stores all stay, as those of {run} are not known: {error}"
            return found, [why]
        if shared.note:
            notes.append(f"more than {run} uses stays, as that is not known: {shared.note}")
        used.update(*(map(Path.resolve, each) for each in _folders(shared)))
    return [*found, *_unused_cache(storage / "cache", used)], notes


def still_unused(storage: Path, unused: Iterable[Unused]) -> tuple[list[Unused], list[str]]:
    """Return which folders are still unused: a run may have begun while the user was asked.

    Args:
        storage: Folder of all runs.
        unused: The folders that were found before.

    Returns:
        The folders that may be removed, and a line for each that is kept.
    """
    now = {each.path for each in find_unused(storage)[0]}
    listed = [each for each in unused if each.path.exists()]
    stays = [f"{u.path}: stays, a run has begun to use it" for u in listed if u.path not in now]
    return [each for each in listed if each.path in now], stays


def remove(unused: Iterable[Unused]) -> tuple[int, list[str]]:
    """Remove folders, except those that a process is using.

    Returns:
        The number of bytes freed, and a line for each folder that is kept.
    """
    freed, kept = 0, []
    for each in unused:
        try:
            with FileLock(each.lock, timeout=0):
                shutil.rmtree(each.path)
            freed += each.num_bytes
        except Timeout:
            kept.append(f"{each.path}: stays, a process works on it")
        except OSError as error:
            kept.append(f"{each.path}: stays: {error.strerror or error}")
    return freed, kept


def _folders(shared: Shared) -> tuple[tuple[Path, ...], ...]:
    return shared.given, shared.data, shared.teachers, shared.stores


def _unused_cache(cache: Path, used: set[Path]) -> Iterator[Unused]:
    for parent in (*(cache / name for name in _CACHED), given_folder(cache)):
        for folder in folders_in(parent):
            if folder.is_symlink() or folder.resolve() in used:
                continue
            teacher = parent.name == "teachers"
            lock = folder.with_suffix(".lock") if teacher else hidden_lock(folder)
            yield Unused(folder, _size(folder), _TRAINED if teacher else _OF_NO_RUN, lock)
    for folder, becomes in unfinished_folders(cache / "teachers").items():
        if becomes.resolve() not in used:
            yield Unused(folder, _size(folder), _UNFINISHED, becomes.with_suffix(".lock"))


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.lstat().st_size if not path.is_dir() or path.is_symlink() else 0
    return total
