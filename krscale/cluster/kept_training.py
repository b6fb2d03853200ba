"""From where a training of several workers goes on, if it was begun before.

Ray Train keeps a record of its checkpoints and writes it in place. A machine that fails meanwhile
leaves half a record beside whole checkpoints, of which the newest is gone on from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from krscale.errors import UserError
from krscale.files import damaged, set_aside
from krscale.storage.address import place_of
from krscale.training.checkpoint import check_checkpoint

SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray Train's own record of the checkpoints that it keeps."""
STATE = "state"
"""Folder of krscale's checkpoint within Ray Train's."""


def find_checkpoint(folder: Path, what: str, note: Callable[[str], None]) -> Path | None:
    """Compare the checkpoint that a training goes on from with its checksums.

    On workers, what is wrong with it would be found by each group that Ray starts, one by one.

    Args:
        folder: Of Ray Train; it need not exist.
        what: Is trained.
        note: Prints a line for the user: that the record was unreadable.

    Returns:
        The checkpoint that Ray Train has no record of, and workers are to go on from; None where
        its record says from where, or nothing is kept.

    Raises:
        UserError: Naming the file that is damaged, and what to do.
    """
    snapshot = folder / SNAPSHOT
    rebuild = f"Delete the folder {folder}: the same command then trains the {what} from the start."
    here = place_of(folder) is None  # elsewhere, a record is there whole or not at all
    if not snapshot.exists():
        return next(_whole(folder), None) if here else None
    try:
        names, latest = _recorded(snapshot)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        newest = next(_whole(folder), None) if here else None
        if newest is None:
            raise damaged(snapshot, f"it cannot be read ({error})", rebuild) from None
        aside = set_aside(snapshot)
        note(f"{aside}: Ray Train's record could not be read; {newest.name} is gone on from.")
        return newest
    for name in names:
        if not (folder / name).is_dir():
            raise UserError(f"{folder / name}: this checkpoint is missing. {rebuild}")
    if latest:
        check_checkpoint(folder / latest / STATE, rebuild)
    return None


def remove_unrecorded(folder: Path) -> None:
    """Remove checkpoints that Ray Train has no record of, when a training has ended."""
    snapshot = folder / SNAPSHOT
    if not snapshot.exists():
        return
    names, _ = _recorded(snapshot)
    for path in _checkpoints(folder):
        if path.name not in names:
            shutil.rmtree(path)


def _recorded(snapshot: Path) -> tuple[list[str], str]:
    """Return the names of all checkpoints of the record, and of the latest, empty if there is none.

    Raises:
        ValueError, LookupError, TypeError, RecursionError: If it is not Ray Train's.
    """
    kept = json.loads(snapshot.read_bytes())
    latest = kept["latest_checkpoint_result"] or {}
    names = [each["checkpoint_dir_name"] for each in (*kept["checkpoint_results"], latest) if each]
    if not all(isinstance(name, str) for name in names):
        raise TypeError("a name is no text")
    return list(dict.fromkeys(names)), names[-1] if names else ""


def _whole(folder: Path) -> Iterator[Path]:
    """Yield the checkpoints that are what was written, the newest first.

    Not that of a last epoch, which has the weights beside it: no epoch would be left to report.
    """
    for path in sorted(_checkpoints(folder), reverse=True):  # their names are their times
        if any(path.glob("*.safetensors")):
            continue
        try:
            check_checkpoint(path / STATE)
        except UserError:
            continue  # of an epoch that was being reported
        yield path


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint_*") if path.is_dir()]
