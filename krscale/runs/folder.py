"""The folder of a run: claiming it for one process, finding it by name, paths of its students."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from krscale.config import Experiment
from krscale.errors import UserError
from krscale.files import write_json, write_text
from krscale.foreign import is_file, real, user_path
from krscale.links import refuse_links
from krscale.runs.experiment_file import EXPERIMENT_FILE, Spent, check_or_write
from krscale.runs.origin import ENVIRONMENT_FILE, environment
from krscale.showing import show
from krscale.storage.address import checked_uri, is_uri, mark, working_folder
from krscale.storage.run_mirror import mirrored, refresh

_MARKS = (EXPERIMENT_FILE, "curve.json", "journal.log", "student.json", "tracking")
"""A folder with one of these files is taken for that of a run, and is searched for links."""


def _print(line: str) -> None:
    show(line, file=sys.stderr)


@contextmanager
def run_folder(
    experiment: Experiment,
    bound: Mapping[str, Any],
    *,
    spent: Spent = lambda folder: {},
    renewed: tuple[str, ...] = (),
    say: Callable[[str], None] = _print,
) -> Iterator[Path]:
    """Claim the run's folder for this process: create it, or check that it belongs to this run.

    Args:
        experiment: The resolved experiment.
        bound: What else must be the same in every start of the run, e.g. the search space.
        spent: Called when a budget is smaller than before.
        renewed: Prefixes of the dotted names of fields that the user allows to differ.
        say: Receives lines for the user about a storage that is a URI.

    Yields:
        The folder.

    Raises:
        UserError: If another process has claimed it, if it holds links, or if it belongs to another
            experiment; names fields that differ.
    """
    folder = experiment.run_path
    folder.mkdir(parents=True, exist_ok=True)
    refuse_links(folder)
    owner = folder / ".owner"
    lock = FileLock(folder / ".lock")  # the kernel releases it when its process dies
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = "another process"
        if is_file(owner):
            who = owner.read_text(encoding="utf-8", errors="replace").strip() or who
        raise UserError(
            f"name: run {experiment.name!r} is being run now by {who}, in {folder}. "
            f"Wait for it, or choose another name."
        ) from None
    try:
        now = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
        who = f"process {os.getpid()} on {platform.node()}, since {now}\n"
        write_text(owner, who)  # replaces whatever is there
        with mirrored(folder, say):
            check_or_write(folder, experiment, bound, spent, renewed)
            write_json(folder / ENVIRONMENT_FILE, environment())
            yield folder
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def storage_folder(storage: str) -> Path:
    """Return the folder of a storage that a user named; for a URI, its local folder.

    Raises:
        UserError: If it is not a valid path, is the folder of a run, or is a URI that cannot be a
            storage.
    """
    if not is_uri(storage):
        folder = user_path(storage, "--storage-path")
        if is_file(folder / EXPERIMENT_FILE):
            raise UserError(
                f"--storage-path: {folder} is the folder of a run; its storage is "
                f"{real(folder).parent}."
            )
        return folder
    try:
        uri = checked_uri(storage)
    except ValueError as error:
        raise UserError(f"--storage-path: {error}.") from None
    mark(uri)
    return working_folder(uri)


def find_run(name: str, storage_path: Path) -> Path:
    """Return the absolute folder of a run: the path if `name` is one, else the run of this name.

    A mistyped path counts as a path, so that the error can name the runs beside it. A folder that
    has a run's name but is not a run, such as a folder of its images, does not hide the run.

    Raises:
        UserError: If it is the folder of a run and holds links.
    """
    folder = _find_run(name, storage_path)
    refresh(folder)
    if any(os.path.lexists(folder / file) for file in _MARKS):
        refuse_links(folder)
    return folder


def _find_run(name: str, storage_path: Path) -> Path:
    written = user_path(name, "RUN")
    named = user_path(storage_path, "--storage-path") / written
    hidden = len(written.parts) == 1 and not (written / EXPERIMENT_FILE).exists()
    if hidden and written.is_dir():
        refresh(named)  # it may be a run that this machine has not fetched
    if hidden and (named / EXPERIMENT_FILE).exists():
        return real(named)
    if written.is_dir() or (len(written.parts) > 1 and written.parent.is_dir()):
        return real(written)
    return real(named)


def student_path(run_path: Path, method: str, capacity: str, seed: int) -> Path:
    """Return the path of the weights of a final student of a search."""
    return run_path / "students" / method / capacity.replace("/", "-") / f"seed-{seed}.safetensors"
