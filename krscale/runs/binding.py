"""What a run folder is bound to besides its settings: its data, and its teacher's code and weights.

All of it is in `bound.json`, and which image is in which split in `splits.csv`. Another start of
the run compares them, so that students of two data sets or two teachers never meet in one study.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from krscale.config import read_record
from krscale.data import SPLITS_FILE, Dataset, compare_counts, compare_lists
from krscale.errors import UserError
from krscale.files import sha256, write_atomic, write_json
from krscale.setup.prepare import Prepared, Setup
from krscale.setup.teacher_code import Code, compare_code, read_code

BOUND_FILE = "bound.json"
_WEIGHTS_FILE = "teacher.safetensors"  # in the folder of a kept teacher
EARLIER = "earlier"
"""Beginning of the names of folders, within a run folder, that hold what `--new-data` put aside."""
_KEPT = frozenset((".lock", ".owner", "experiment.json", "environment.json"))
"""What stays when the rest of a run folder is put aside; the second two are copied, too."""
_WAYS_ON = (
    "Choose another name (--set name=...), or go on with --new-data, which puts the results so far "
    "aside within the run folder and begins again."
)


@dataclass(frozen=True)
class Bound:
    """What a run was begun with.

    Attributes:
        data: Digest of the content of its data.
        images: Number of images of each class.
        identity: Of the files that the data was read from; equal ones need not be read again.
        code: Of the teacher's network; see `Code`.
        given: Hash of the file `teacher.weights`; empty where the teacher is trained here.
        weights: Hash of the kept teacher's weights; empty until there are any.
    """

    data: str
    images: dict[str, int]
    identity: str
    code: Code
    given: str = ""
    weights: str = ""


def bind(folder: Path, setup: Setup, *, new_data: bool = False) -> tuple[str, ...]:
    """Bind a run folder to data and teacher's code, or check that they are those of the run.

    Called before anything is trained, since a changed teacher would be. A folder that is older
    than this record gets it now.

    Args:
        folder: The run folder, claimed by this process.
        setup: What the run is started with.
        new_data: Put the results so far aside where the folder is bound to something else.

    Returns:
        What the user should know, a sentence each.

    Raises:
        UserError: If the data or the code is another; says what has changed.
    """
    path = folder / BOUND_FILE
    now = _bound(setup)
    if path.exists():
        before = read_record(path, Bound, "Restore it from a copy, or choose another name.")
        changes = [
            *_data_changes(folder, before, now, setup.dataset),
            *_teacher_changes(before, now),
        ]
        if changes and not new_data:
            raise UserError(f"{folder}: {'; '.join(changes)} since the run began. {_WAYS_ON}")
        if changes:
            aside = put_aside(folder)
            _write(folder, now, setup.dataset)
            return (f"{'; '.join(changes)}: the results so far are in {aside}.",)
        now = replace(now, weights=before.weights)
    _write(folder, now, setup.dataset)
    return ()


def bind_weights(folder: Path, prepared: Prepared) -> None:
    """Bind a run folder to its teacher's weights, or check that they are those of the run.

    Raises:
        UserError: If they are others.
    """
    path = folder / BOUND_FILE
    bound = read_record(path, Bound, "Restore it from a copy, or choose another name.")
    weights = sha256(Path(prepared.teacher_path) / _WEIGHTS_FILE)
    if bound.weights and bound.weights != weights:
        raise UserError(
            f"{folder}: the teacher has other weights than when the run began "
            f"({prepared.teacher_path}): it was trained or loaded again. Choose another name "
            "(--set name=...), or restore the teacher's folder."
        )
    if bound.weights != weights:
        write_json(path, asdict(replace(bound, weights=weights)))


def put_aside(folder: Path) -> Path:
    """Move what a run has come to into a folder within its own, and return that."""
    number = 1
    while (aside := folder / f"{EARLIER}-{number}").exists():
        number += 1
    aside.mkdir()
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(f"{EARLIER}-"):
            continue
        if entry.name not in _KEPT:
            entry.rename(aside / entry.name)
        elif not entry.name.startswith("."):
            shutil.copy2(entry, aside / entry.name)
    return aside


def _bound(setup: Setup) -> Bound:
    content, experiment = setup.dataset.content(), setup.experiment
    given = Path(experiment.teacher.weights).expanduser()
    return Bound(
        content.digest,
        content.images,
        setup.dataset.identity,
        read_code(experiment, setup.dataset),
        given=sha256(given) if experiment.teacher.weights and given.is_file() else "",
    )


def _write(folder: Path, bound: Bound, dataset: Dataset) -> None:
    listed = dataset.path / SPLITS_FILE
    if listed.is_file() and not (folder / SPLITS_FILE).exists():
        write_atomic(folder / SPLITS_FILE, lambda to: _copy(listed, to))
    write_json(folder / BOUND_FILE, asdict(bound))


def _copy(source: Path, to: Path) -> None:
    shutil.copyfile(source, to)


def _data_changes(folder: Path, before: Bound, now: Bound, dataset: Dataset) -> list[str]:
    if before.data == now.data:
        return []
    lists = folder / SPLITS_FILE, dataset.path / SPLITS_FILE
    if all(path.is_file() for path in lists):
        return [f"the data has changed: {compare_lists(*lists)}"]
    return [f"the data has changed: {compare_counts(before.images, now.images)}"]


def _teacher_changes(before: Bound, now: Bound) -> list[str]:
    changes = []
    if changed := compare_code(before.code, now.code):
        changes.append(f"the code of the teacher has changed: {changed}")
    if before.given != now.given:
        changes.append("the file teacher.weights has changed")
    return changes
