"""Telling what kind of folder a user named, where a command needs that of a run or a search."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from krscale.config import RESERVED_NAMES, is_share
from krscale.errors import UserError, nearest
from krscale.files import read_json, reading
from krscale.report.result import CURVE_FILE
from krscale.runs.experiment_file import EXPERIMENT_FILE

_JOURNAL = "journal.log"
_STUDENT = "student.json"
"""The result of `krscale distill`; in a folder that is not a run's, the card of an exported
student."""
_CACHED = ("data", "teachers", "stores")
_RESERVED = {
    "mlartifacts": "what MLflow keeps of the runs; `krscale ui` shows it",
    "mlruns": "what MLflow keeps of the runs; `krscale ui` shows it",
    "reports": "what `krscale report` wrote of several runs",
}
_MOST_NAMED = 20


def require_folder(folder: Path) -> None:
    """Refuse a path that is not a folder, naming the runs beside it.

    Raises:
        UserError: With the run that was probably meant, if a name is similar.
    """
    if folder.is_dir():
        return
    finished, others = _runs_in(folder.parent)
    guess = nearest(folder.name, finished + others)
    hint = f" Did you mean {guess!r}?" if guess else ""
    raise UserError(f"{folder}: no such run.{hint} {_listed(folder.parent)}")


def require_run(folder: Path) -> None:
    """Refuse a path that is not the folder of a run, saying what it is.

    Raises:
        UserError: If no command has begun a run in it.
    """
    require_folder(folder)
    if not (folder / EXPERIMENT_FILE).is_file():
        raise UserError(f"{folder}: {describe_folder(folder)}. {_listed(_storage_of(folder))}")


def require_search(folder: Path) -> None:
    """Refuse a path that is not a run with a curve, saying what it is and what can be done with it.

    Raises:
        UserError: If no search has finished in it.
    """
    require_folder(folder)
    if not (folder / CURVE_FILE).is_file():
        found = f"{folder}: no {CURVE_FILE} here: {describe_folder(folder)}."
        raise UserError(f"{found} {_listed(_storage_of(folder))}")


def describe_folder(folder: Path) -> str:
    """Describe a folder without a finished search, and what can be done with it.

    Args:
        folder: An existing folder.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     describe_folder(Path(folder))
        'it is empty'
    """
    if (folder / EXPERIMENT_FILE).is_file():
        return _describe_run(folder)
    if (folder / _STUDENT).is_file():
        return (
            f"it is an exported student; `krscale verify {shlex.quote(str(folder))}` compares its "
            "files with what was written"
        )
    if around := [up for up in folder.parents[:4] if (up / EXPERIMENT_FILE).is_file()]:
        return f"it is a part of the run {around[0]}"
    if any((folder / run / EXPERIMENT_FILE).is_file() for run in _folders_in(folder)):
        return "it is the storage that runs are in; name one of them"
    if any(up.name == "cache" and _is_cache(up) for up in (folder, *folder.parents[:2])):
        return "it holds data, teachers and stores, which the runs of a storage share"
    if folder.name in _RESERVED:
        return f"it is {_RESERVED[folder.name]}"
    if not any(folder.iterdir()):
        return "it is empty"
    return f"it is not the folder of a run: it has no {EXPERIMENT_FILE}"


def _describe_run(folder: Path) -> str:
    path = folder / EXPERIMENT_FILE
    content = read_json(path)
    with reading(path):
        is_search = bool(content["bound"]) or (folder / _JOURNAL).exists()
        parts = content["experiment"]["distill"]
        method, capacity = str(parts["method"]), str(parts["capacity"])
    goes_on = "the command that began it goes on with it"
    if is_search:
        begun = "finished" if (folder / _JOURNAL).exists() else "begun its trials"
        return f"its search has not {begun}; {goes_on}"
    single = f"it is the run of a single student (krscale distill: {method} at {capacity})"
    if not (folder / _STUDENT).is_file():
        return f"{single}, which has not finished; {goes_on}"
    its_size = (
        f"ladder.capacities = ['{capacity}']"
        if is_share(capacity)
        else f"{capacity!r} alone in [[ladder.students]]"
    )
    return (
        f"{single}; its accuracies are in {_STUDENT}, its weights in student.safetensors, and the "
        "command that began it shows them again. Curves and exports are of searches: `krscale "
        f"tune` with {its_size} and search.methods = ['{method}'] is one of this size and method"
    )


def _is_cache(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in _CACHED)


def _storage_of(folder: Path) -> Path:
    """Return the storage whose runs an error lists: from `folder` upwards, the first with runs."""
    around = (folder, *folder.parents[:3])
    return next((each for each in around if any(_runs_in(each))), folder.parent)


def _listed(storage: Path) -> str:
    """Name the runs of a storage."""
    finished, others = map(_named, _runs_in(storage))
    return f"Runs with a curve in {storage}: {finished}; without one: {others}."


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more or "none"


def _runs_in(storage: Path) -> tuple[list[str], list[str]]:
    """Return the names of the runs of a storage, those with a curve first."""
    runs = [n for n in _folders_in(storage) if (storage / n / EXPERIMENT_FILE).is_file()]
    finished = [n for n in _folders_in(storage) if (storage / n / CURVE_FILE).is_file()]
    return finished, [name for name in runs if name not in finished]


def _folders_in(storage: Path) -> Iterator[str]:
    with suppress(OSError):  # the folder is missing or may not be read
        names = sorted(path.name for path in storage.iterdir() if path.is_dir())
        yield from (n for n in names if n not in RESERVED_NAMES and not n.startswith("."))
