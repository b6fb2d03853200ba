"""Going on where a run was recorded: its spool sent again, or a model of it registered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from krscale.errors import UserError
from krscale.tracking.tracker import FOLDER, Tracker
from krscale.tracking.writer import State


def sync(
    run_path: Path,
    uri: str = "",
    *,
    storage_path: Path | None = None,
    timeout: float = 60.0,
    warn: Callable[[str], None] | None = None,
) -> int:
    """Send what a run recorded while MLflow was away.

    Args:
        run_path: The run's folder.
        uri: Where to; empty takes where the run was recorded.
        storage_path: The folder of all runs; None takes the parent of `run_path`.
        timeout: Seconds after which to give up.
        warn: Takes one line for the user; None prints to stderr.

    Returns:
        Events that are still unsent.

    Raises:
        UserError: If the run recorded nothing, is being recorded now, or its URI held credentials,
            which are not kept.
    """
    return reopen(run_path, uri, storage_path=storage_path, warn=warn).close(timeout)


def reopen(
    run_path: Path,
    uri: str = "",
    *,
    storage_path: Path | None = None,
    warn: Callable[[str], None] | None = None,
) -> Tracker:
    """Return a tracker that goes on where a run was recorded; arguments as of `sync`.

    Raises:
        UserError: If the run recorded nothing, is being recorded now, or its URI held credentials,
            which are not kept.
    """
    folder = run_path / FOLDER
    state = State.load(folder / "state.json")
    if state is None:
        raise UserError(f"{run_path}: nothing was recorded here for MLflow ({folder} is missing).")
    if not uri and "***" in state.uri:
        raise UserError(
            f"{run_path}: was recorded for {state.uri}, whose credentials are not kept."
            " Give the URI again."
        )
    return Tracker(
        uri or state.uri, state.experiment, run_path, storage_path=storage_path, warn=warn
    )
