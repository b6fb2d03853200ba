"""What a run folder is bound to besides its settings: its data, networks' code, teacher's weights.

All of it is in `origin.json`, and which image is in which split in `splits.csv`. Another start of
the run compares them, so that students of two data sets or two teachers never meet in one study.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from krscale.config import read_record
from krscale.data import SPLITS_FILE, Dataset, compare_counts, compare_lists
from krscale.errors import UserError
from krscale.files import sha256, write_atomic, write_json
from krscale.report import read_curve
from krscale.report.result import CURVE_FILE
from krscale.setup.networks import student_table
from krscale.setup.prepare import Setup
from krscale.setup.teacher_code import Code, compare_code, read_code, read_student_code
from krscale.setup.weights import weights_identity

ORIGIN_FILE = "origin.json"
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
class Origin:
    """What a run was begun with.

    Attributes:
        data: Digest of the content of its data.
        images: Number of images of each class.
        code: Of the teacher's network; see `Code`.
        students: Of the students' networks, by their table.
        given: Hash of the weights that networks are given, by their table.
        weights: Hash of the kept teacher's weights; empty until there are any.
        unlabelled: Digest of the images without labels; empty where there are none.
        num_unlabelled: Their number.
    """

    data: str
    images: dict[str, int]
    code: Code
    students: dict[str, Code] = field(default_factory=dict)
    given: dict[str, str] = field(default_factory=dict)
    weights: str = ""
    unlabelled: str = ""
    num_unlabelled: int = 0

    def record(self) -> dict[str, Any]:
        """Return what `origin.json` holds; of images without labels, where there are some."""
        content = asdict(self)
        if not self.unlabelled:
            del content["unlabelled"], content["num_unlabelled"]
        return content


def bind(folder: Path, setup: Setup, *, new_data: bool = False) -> tuple[str, ...]:
    """Bind a run folder to data and networks' code, or check that they are those of the run.

    Called before anything is trained, since a changed teacher would be. A folder that is older
    than this record gets it now, unless its result is of other data.

    Args:
        folder: The run folder, claimed by this process.
        setup: What the run is started with.
        new_data: Put the results so far aside where the folder is bound to something else.

    Returns:
        What the user should know, a sentence each.

    Raises:
        UserError: If the data or the code is another; says what has changed.
    """
    path = folder / ORIGIN_FILE
    now, known = _origin(setup), path.exists()
    if not known:
        changes = _older_changes(folder, setup.dataset)
    else:
        before = read_record(path, Origin, "Restore it from a copy, or choose another name.")
        changes = [
            *_data_changes(folder, before, now, setup.dataset),
            *_unlabelled_changes(before, now),
            *_network_changes(before, now),
        ]
        now = now if changes else replace(now, weights=before.weights)
    if changes and not new_data:
        raise UserError(f"{folder}: {'; '.join(changes)} since the run began. {_WAYS_ON}")
    aside = put_aside(folder) if changes else None
    if changes or not known:
        _write_split_list(folder, setup.dataset)
    write_json(path, now.record())
    return (f"{'; '.join(changes)}: the results so far are in {aside}.",) if aside else ()


def bind_weights(folder: Path, teacher_path: Path) -> None:
    """Bind a run folder to its teacher's weights, or check that they are those of the run.

    Args:
        folder: The run folder; one that is older than the record is left as it is.
        teacher_path: Folder of the kept teacher.

    Raises:
        UserError: If they are others.
    """
    path = folder / ORIGIN_FILE
    if not path.exists():
        return
    bound = read_record(path, Origin, "Restore it from a copy, or choose another name.")
    weights = sha256(teacher_path / _WEIGHTS_FILE)
    if bound.weights and bound.weights != weights:
        raise UserError(
            f"{folder}: the teacher has other weights than when the run began "
            f"({teacher_path}): it was trained or loaded again. Choose another name (--set "
            "name=...), or restore the teacher's folder."
        )
    if bound.weights != weights:
        write_json(path, replace(bound, weights=weights).record())


def put_aside(folder: Path) -> Path:
    """Move what a run has come to into a folder within its own, and return that."""
    number = 1
    while (aside := folder / f"{EARLIER}-{number}").exists():
        number += 1
    aside.mkdir()
    # The record last: cut short before that, the next start refuses what is left as well.
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == ORIGIN_FILE):
        if entry.name.startswith(f"{EARLIER}-"):
            continue
        if entry.name not in _KEPT:
            entry.rename(aside / entry.name)
        elif not entry.name.startswith("."):
            shutil.copy2(entry, aside / entry.name)
    return aside


def _origin(setup: Setup) -> Origin:
    content, experiment, dataset = setup.dataset.content(), setup.experiment, setup.dataset
    students = experiment.ladder.students or (experiment.student,)
    given = {"teacher": weights_identity(experiment, dataset)}
    for student in experiment.ladder.students:
        path = Path(student.weights).expanduser()
        given[student_table(student)] = sha256(path) if path.is_file() else ""
    return Origin(
        content.digest,
        content.images,
        read_code(experiment, dataset),
        {student_table(student): read_student_code(student, dataset) for student in students},
        {table: weights for table, weights in given.items() if weights},
        unlabelled=setup.taught.unlabelled,
        num_unlabelled=setup.taught.num_unlabelled,
    )


def _write_split_list(folder: Path, dataset: Dataset) -> None:
    listed = dataset.path / SPLITS_FILE
    if listed.is_file():
        write_atomic(folder / SPLITS_FILE, partial(_copy, listed))


def _copy(source: Path, to: Path) -> None:
    shutil.copyfile(source, to)


def _data_changes(folder: Path, before: Origin, now: Origin, dataset: Dataset) -> list[str]:
    if before.data == now.data:
        return []
    lists = folder / SPLITS_FILE, dataset.path / SPLITS_FILE
    if all(path.is_file() for path in lists):
        return [f"the data has changed: {compare_lists(*lists)}"]
    return [f"the data has changed: {compare_counts(before.images, now.images)}"]


def _unlabelled_changes(before: Origin, now: Origin) -> list[str]:
    if before.unlabelled == now.unlabelled:
        return []
    counts = f"{before.num_unlabelled:,} then, {now.num_unlabelled:,} now"
    return [f"the images without labels have changed ({counts})"]


def _older_changes(folder: Path, dataset: Dataset) -> list[str]:
    """Say whether the result of a run without a record is of other data, as far as it tells."""
    if not (folder / CURVE_FILE).is_file():
        return []
    try:
        known = read_curve(folder).data.get("fingerprint")
    except UserError:  # a damaged result is written again
        return []
    if known in (None, dataset.fingerprint, dataset.identity):
        return []
    return ["its result is of other data (an older krscale did not note which images)"]


def _network_changes(before: Origin, now: Origin) -> list[str]:
    changes = []
    codes = {"teacher": (before.code, now.code)}
    for table in before.students.keys() & now.students.keys():
        codes[table] = before.students[table], now.students[table]
    for table, (old, new) in sorted(codes.items()):
        if changed := compare_code(old, new):
            changes.append(f"the code of {table} has changed: {changed}")
    tables = sorted(before.given.keys() | now.given.keys())
    changes += [
        f"the weights of {table} have changed"
        for table in tables
        if before.given.get(table) != now.given.get(table)
    ]
    return changes
