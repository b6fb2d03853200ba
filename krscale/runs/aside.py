"""How `--new-data` puts results aside: it moves them into a folder within the run folder."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from krscale.errors import DamagedFileError
from krscale.files import read_json, sync, write_atomic, write_json
from krscale.storage.run_copy import FETCHING, RECORD
from krscale.storage.trial_files import HERE

ORIGIN_FILE = "origin.json"
EARLIER = "earlier"
"""Prefix of the names of folders, within a run folder, that hold what `--new-data` put aside."""
KEPT = frozenset((".lock", ".owner", HERE, RECORD, FETCHING, "experiment.json", "environment.json"))
"""What stays when the rest of a run folder is put aside; the last two are also copied."""
_TRACKING = "tracking"
_SPOOL = Path(_TRACKING, "spool.jsonl")
_MARK = "being put aside in"
"""Key of the content that replaces the record while the rest is being moved; it matches no data."""


def put_aside(folder: Path) -> Path:
    """Move the results of a run into a folder within its own, and return that folder.

    The record of the run is copied first, then replaced by a mark that the rest is being moved.
    After an interruption at any moment, the rest of the run is therefore never taken for a whole
    run.

    Args:
        folder: The run folder; the caller writes its new record.
    """
    number = 1
    while (aside := folder / f"{EARLIER}-{number}").exists():
        number += 1
    aside.mkdir()
    record = folder / ORIGIN_FILE
    if record.exists():
        write_atomic(aside / ORIGIN_FILE, partial(_copy, record))
    write_json(record, {_MARK: aside.name})
    return _move(folder, aside)


def finish_putting_aside(folder: Path) -> Path | None:
    """Finish an interrupted `put_aside` and return its folder; None if none was interrupted."""
    name = being_put_aside(folder)
    if not name:
        return None
    (folder / name).mkdir(exist_ok=True)
    return _move(folder, folder / name)


def being_put_aside(folder: Path) -> str:
    """Return the name of the folder that the rest of a run is being moved to, else empty."""
    record = folder / ORIGIN_FILE
    try:
        content = read_json(record) if record.exists() else None
    except DamagedFileError:  # code that reads the record reports it, with advice
        return ""
    name = content.get(_MARK) if isinstance(content, dict) else None
    return name if isinstance(name, str) and Path(name).name == name else ""


def results_in(folder: Path) -> list[str]:
    """Return the names of the results of a run; none if its folder was only claimed."""
    names = (entry.name for entry in folder.iterdir())
    return sorted(
        name
        for name in names
        if name != ORIGIN_FILE and name not in KEPT and not name.startswith(f"{EARLIER}-")
    )


def has_begun(folder: Path) -> bool:
    """Return whether a run has trained or recorded anything since its folder was made.

    It has not if its start was refused, or ended before the first trial.
    """
    from krscale.data import SPLITS_FILE  # imports torch, for which --help must not wait

    if set(results_in(folder)) - {SPLITS_FILE, _TRACKING} or being_put_aside(folder):
        return True
    spool = folder / _SPOOL
    return spool.is_file() and spool.read_bytes().count(b"\n") > 1  # its first line is its id


def forget_data(folder: Path) -> None:
    """Remove the record of the data of a run that has not begun; its next start may have others."""
    from krscale.data import SPLITS_FILE  # as in `has_begun`

    for name in (ORIGIN_FILE, SPLITS_FILE):
        (folder / name).unlink(missing_ok=True)


def _move(folder: Path, aside: Path) -> Path:
    for name in results_in(folder):
        (folder / name).rename(aside / name)
    for name in sorted(KEPT):
        is_copied = name.startswith(".") or (aside / name).exists()
        if not is_copied and (folder / name).exists():
            write_atomic(aside / name, partial(_copy, folder / name))
    sync(aside)
    sync(folder)
    return aside


def _copy(source: Path, to: Path) -> None:
    shutil.copy2(source, to)
