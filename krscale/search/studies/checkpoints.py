"""Checkpoints of unfinished trials, from which interrupted trials continue.

Each attempt writes its own folder, `unfinished/<trial name>` in the run folder, because a worker of
a killed search may still write its checkpoint while the next start already trains. The ladder
removes a folder once no trial can continue from it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from krscale.errors import UserError
from krscale.files import reading
from krscale.storage.run_mirror import discard
from krscale.storage.trial_files import bring_checkpoint, send_checkpoint
from krscale.training.checkpoint import load_checkpoint, read_note, save_checkpoint
from krscale.training.loop import Training

MAX_SHARE = 0.02
"""Share of a trial's time that its checkpoints may take."""

History = list[dict[str, float]]


def checkpoint_path(run_path: Path, trial_name: str) -> Path:
    """Return the checkpoint folder of a trial that has not ended."""
    return run_path / "unfinished" / trial_name


def sign_path(run_path: Path, trial_name: str) -> Path:
    """Return the file with a trial's signs of progress (`signs.py`), beside its checkpoint."""
    checkpoint = checkpoint_path(run_path, trial_name)
    return checkpoint.with_name(f"{checkpoint.name}.sign")


def sweep(run_path: Path, needed: Collection[Path]) -> None:
    """Remove all checkpoints except those that a waiting trial continues from."""
    root = run_path / "unfinished"
    for folder in root.glob("*/*/*"):
        if folder not in needed:
            _remove(run_path, folder)
    if not needed:
        shutil.rmtree(root, ignore_errors=True)


def forget(run_path: Path, *trial_names: str) -> None:
    """Remove the checkpoints of trials; empty names are ignored."""
    for name in filter(None, trial_names):
        _remove(run_path, checkpoint_path(run_path, name))
        _remove(run_path, sign_path(run_path, name))


def _remove(run_path: Path, path: Path) -> None:
    discard(run_path, path)
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


class Keeper:
    """Writes one trial's checkpoints, at a bounded cost.

    Args:
        path: Folder of the checkpoint.
        min_seconds: Minimum time between two checkpoints, and before the first.
        clock: Returns the time in seconds; replaced in tests.
    """

    def __init__(
        self, path: Path, min_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.path, self.min_seconds, self.clock = path, min_seconds, clock
        self.next_at = clock() + min_seconds

    def keep(self, training: Training, history: History) -> None:
        """Write the state of a training between two epochs, if a checkpoint is due."""
        started = self.clock()
        if started < self.next_at or training.finished:
            return
        state = {"training": training.state_dict(), "history": history}
        save_checkpoint(self.path, state, json.dumps(history))
        send_checkpoint(self.path)
        ended = self.clock()
        self.next_at = ended + max(self.min_seconds, (ended - started) / MAX_SHARE)


def kept_history(path: Path) -> History:
    """Return the metrics of the epochs in a checkpoint, without reading its weights.

    Empty if the checkpoint cannot be read: the trial then starts from its beginning.
    """
    try:
        bring_checkpoint(path)
        with reading(path):
            return [dict(metrics) for metrics in json.loads(read_note(path) or "[]")]
    except (UserError, OSError):
        return []


def go_on(training: Training, path: Path) -> tuple[History, str]:
    """Load a checkpoint into a fresh training.

    Returns:
        The metrics of the epochs in the checkpoint, and an empty text. If it cannot be read,
        because it is damaged, or because its writer died or still writes: no epochs, and the
        reason. The training may then be partly loaded and must be built again; it starts from its
        beginning, with the same result.
    """
    try:
        bring_checkpoint(path)
        state: Mapping[str, Any] = load_checkpoint(path)
        with reading(path):
            training.load_state_dict(state["training"])
            return [dict(metrics) for metrics in state["history"]], ""
    except (UserError, OSError) as error:
        return [], str(error)
