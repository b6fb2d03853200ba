"""Find where a training on several workers continues, if it was begun before.

Ray Train keeps a record of its checkpoints and rewrites it in place. If the machine fails while it
writes, the record is incomplete but the checkpoints are whole; the training then continues from the
newest of them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from krscale.errors import UserError
from krscale.files import damaged, set_aside
from krscale.storage.address import place_of
from krscale.training.checkpoint import check_checkpoint, read_note

SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray Train's own record of the checkpoints that it keeps."""
STATE = "state"
"""Folder of krscale's checkpoint within Ray Train's checkpoint."""


@dataclass(frozen=True)
class KeptTraining:
    """What is kept of a training that was begun before.

    Attributes:
        checkpoint: The checkpoint that workers continue from if Ray Train has no record of it. None
            if Ray Train's record names one, or if nothing is kept.
        unrecorded: All checkpoints that Ray Train has no record of and therefore never removes.
        metrics: Metrics of the last kept epoch. The driver may have ended before it recorded them.
    """

    checkpoint: Path | None = None
    unrecorded: tuple[Path, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)

    def remove_unrecorded(self) -> None:
        """Remove the unrecorded checkpoints; called when the training has ended."""
        for path in self.unrecorded:
            if path.is_dir():  # a Ray that outlived its driver may have removed it
                shutil.rmtree(path)


def find_kept(folder: Path, what: str, note: Callable[[str], None]) -> KeptTraining:
    """Verify, by its checksums, the checkpoint that a training continues from.

    Without this check, each group of workers that Ray starts would find the same problem again.

    Args:
        folder: Ray Train's folder; it need not exist.
        what: What is trained, for the messages.
        note: Prints a line for the user if the record cannot be read.

    Raises:
        UserError: With the name of the damaged file or missing checkpoint, and what to do.
    """
    snapshot, present = folder / SNAPSHOT, _checkpoints(folder)
    rebuild = f"Delete the folder {folder}: the same command then trains the {what} from the start."
    if place_of(folder) is not None:
        present = []  # a local copy of objects, which are never incomplete
    if not snapshot.exists():
        newest = _newest_whole(present)
        return KeptTraining(newest, tuple(present), _metrics(newest))
    try:
        names, latest = _recorded(snapshot)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        newest = _newest_whole(present)
        if newest is None:
            raise damaged(snapshot, f"it cannot be read ({error})", rebuild) from None
        aside = set_aside(snapshot)
        note(
            f"{aside}: Ray Train's record of its checkpoints cannot be read ({error}). The "
            f"training goes on from the newest whole one, {newest.name}."
        )
        return KeptTraining(newest, tuple(present), _metrics(newest))
    for name in names:
        if not (folder / name).is_dir():
            raise UserError(f"{folder / name}: this checkpoint is missing. {rebuild}")
    unrecorded = tuple(path for path in present if path.name not in names)
    if not latest:
        return KeptTraining(unrecorded=unrecorded)
    check_checkpoint(folder / latest / STATE, rebuild)
    return KeptTraining(unrecorded=unrecorded, metrics=_metrics(folder / latest))


def _recorded(snapshot: Path) -> tuple[list[str], str]:
    """Return the names of all checkpoints of the record, and of the latest (empty if none).

    Raises:
        ValueError, LookupError, TypeError, RecursionError: If it is not a record of Ray Train.
    """
    kept = json.loads(snapshot.read_bytes())
    latest = kept["latest_checkpoint_result"] or {}
    names = [each["checkpoint_dir_name"] for each in (*kept["checkpoint_results"], latest) if each]
    if not all(isinstance(name, str) for name in names):
        raise TypeError("a name is no text")
    return list(dict.fromkeys(names)), names[-1] if names else ""


def _metrics(checkpoint: Path | None) -> dict[str, float]:
    """Return the metrics in a checkpoint's note; a checkpoint of an older krscale has none."""
    found = json.loads(read_note(checkpoint / STATE) or "{}") if checkpoint else {}
    return {str(name): float(value) for name, value in found.items()}


def _newest_whole(checkpoints: Iterable[Path]) -> Path | None:
    """Return the newest checkpoint that passes its checksums.

    The checkpoint of the last epoch, which also holds the weights, is not used: no epoch would be
    left to report.
    """
    for path in sorted(checkpoints, reverse=True):  # named by time
        if any(path.glob("*.safetensors")):
            continue
        try:
            check_checkpoint(path / STATE)
        except UserError:
            continue  # written while the training was interrupted
        return path
    return None


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint_*") if path.is_dir()]
