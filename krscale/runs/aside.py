"""What `--new-data` puts aside: all that a run folder holds moves into a folder within it."""

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
"""Beginning of the names of folders, within a run folder, that hold what `--new-data` put aside."""
KEPT = frozenset((".lock", ".owner", HERE, RECORD, FETCHING, "experiment.json", "environment.json"))
"""What stays when the rest of a run folder is put aside; the second two are copied, too."""
_MARK = "being put aside in"
"""In place of the record while the rest is being moved: it matches no data."""


def put_aside(folder: Path) -> Path:
    """Move what a run has come to into a folder within its own, and return that.

    The record of the run is copied first, and says from then on that the rest is being moved; so
    what is left of a run is never taken for the whole, cut short at any moment.

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
    """Go on where `put_aside` was cut short; return where the rest is now, None if it was not."""
    name = being_put_aside(folder)
    if not name:
        return None
    (folder / name).mkdir(exist_ok=True)
    return _move(folder, folder / name)


def being_put_aside(folder: Path) -> str:
    """Return the name of the folder that the rest of a run is being moved to, else nothing."""
    record = folder / ORIGIN_FILE
    try:
        content = read_json(record) if record.exists() else None
    except DamagedFileError:  # whoever reads the record says so, and what to do
        return ""
    name = content.get(_MARK) if isinstance(content, dict) else None
    return name if isinstance(name, str) and Path(name).name == name else ""


def results_in(folder: Path) -> list[str]:
    """Return the names of what a run has come to, none if it has only been claimed."""
    names = (entry.name for entry in folder.iterdir())
    return sorted(
        name
        for name in names
        if name != ORIGIN_FILE and name not in KEPT and not name.startswith(f"{EARLIER}-")
    )


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
