"""Continue the record of a run: send its spool again, or register a model of it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from krscale.config import TrackingConfig
from krscale.errors import UserError
from krscale.redaction import redact
from krscale.tracking.address import DATABASE, sqlite_uri
from krscale.tracking.position import STATE_FILE, State
from krscale.tracking.tracker import FOLDER, SPOOL_FILE, Tracker, print_warning


@dataclass(frozen=True)
class Begun:
    """What a run folder records about its last start.

    Attributes:
        tracking: Its settings of tracking; credentials are not kept.
        storage: The path of its storage at that time.
    """

    tracking: TrackingConfig
    storage: Path


def has_record(run_path: Path) -> bool:
    """Whether anything of a run was ever recorded for MLflow."""
    return any((run_path / FOLDER / name).is_file() for name in (STATE_FILE, SPOOL_FILE))


def sync(
    run_path: Path,
    uri: str = "",
    *,
    storage_path: Path | None = None,
    begun: Begun | None = None,
    timeout: float = 60.0,
    warn: Callable[[str], None] | None = None,
) -> int:
    """Send what a run recorded while MLflow was away.

    Args:
        run_path: The run's folder.
        uri: Tracking URI; empty takes the one that the run was recorded with.
        storage_path: The folder of all runs; None takes the parent of `run_path`.
        begun: What the run folder records about its last start, if anything.
        timeout: Seconds after which to give up.
        warn: Takes one line for the user; None prints to stderr.

    Returns:
        Number of events that MLflow is not known to have; all of them if it did not answer.

    Raises:
        UserError: If the run recorded nothing, is being recorded now, or its URI held credentials,
            which are not kept.
    """
    tracker = reopen(run_path, uri, storage_path=storage_path, begun=begun, warn=warn)
    try:
        tracker.connect()
    finally:
        unsent = tracker.close(timeout)
    return unsent


def num_refused(run_path: Path) -> int:
    """Return how many items of a run MLflow has refused, which are listed in `REFUSED_FILE`."""
    state = State.load(run_path / FOLDER, print_warning)
    return state.refused if state else 0


def reopen(
    run_path: Path,
    uri: str = "",
    *,
    storage_path: Path | None = None,
    begun: Begun | None = None,
    warn: Callable[[str], None] | None = None,
) -> Tracker:
    """Return a tracker that continues the record of a run; arguments as for `sync`.

    Raises:
        UserError: If the run recorded nothing, is being recorded now, or its URI held credentials,
            which are not kept.
    """
    folder = run_path / FOLDER
    if not has_record(run_path):
        raise UserError(f"{run_path}: nothing was recorded here for MLflow ({folder} is missing).")
    storage = (storage_path or run_path.parent).resolve()
    before = begun.storage if begun else None
    state = State.load(folder, warn or print_warning)
    if state is None:
        config = begun.tracking if begun else TrackingConfig()
        found = config.uri or sqlite_uri((before or storage) / DATABASE)
        state = State(uri=redact(found), experiment=config.experiment)
    state = state.followed(storage, before)
    if not uri and "***" in state.uri:
        command = f"krscale sync {shlex.quote(str(run_path))} --uri URI"
        raise UserError(
            f"{run_path}: was recorded for {state.uri}, whose credentials are not kept."
            f" Give the URI again: {command}"
        )
    return Tracker(
        uri or state.uri, state.experiment, run_path, storage_path=storage_path, warn=warn
    )
