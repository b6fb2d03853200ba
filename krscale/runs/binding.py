"""What a run folder is bound to besides its settings: its data, networks' code, teacher's weights.

All of it is in `origin.json`, and the split of each image is in `splits.csv`. Every later start of
the run compares them, so that a study never mixes students of two data sets or two teachers.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from krscale.config import Experiment, LadderStudent, StudentConfig, read_record
from krscale.data import SPLITS_FILE, Dataset, compare_counts, compare_lists
from krscale.digests import check_file
from krscale.errors import UserError
from krscale.files import sha256, write_atomic, write_json
from krscale.models.preprocessing import Preprocessing
from krscale.runs.aside import (
    ORIGIN_FILE,
    being_put_aside,
    finish_putting_aside,
    has_begun,
    put_aside,
)
from krscale.runs.older import data_of, is_of, no_store_is_of
from krscale.setup.network_builder import student_table, students_of
from krscale.setup.networks import student_preprocessing, teacher_preprocessing
from krscale.setup.prepare import Setup
from krscale.setup.teacher import WEIGHTS_FILE
from krscale.setup.teacher_code import Code, compare_code, read_code, read_student_code
from krscale.setup.teacher_facts import rebuild_teacher
from krscale.setup.weights import from_file, weights_identity

_WAYS_ON = (
    "Choose another name (--set name=...), or go on with --new-data, which puts the results so far "
    "aside within the run folder and begins again."
)


@dataclass(frozen=True)
class Origin:
    """What a run began with.

    Attributes:
        data: Digest of the content of its data.
        images: Number of images of each class.
        code: Code of the teacher's network; see `Code`.
        students: Code of the students' networks, by their table.
        given: Hash of the weights that networks are given, by their table.
        weights: Hash of the kept teacher's weights; empty until there are any.
        inputs: How the images of networks are prepared, by their table: it may come from metadata
            of the network.
        unlabelled: Digest of the images without labels; empty where there are none.
        num_unlabelled: Number of images without labels.
    """

    data: str
    images: dict[str, int]
    code: Code
    students: dict[str, Code] = field(default_factory=dict)
    given: dict[str, str] = field(default_factory=dict)
    weights: str = ""
    inputs: dict[str, Preprocessing] = field(default_factory=dict)
    unlabelled: str = ""
    num_unlabelled: int = 0

    def record(self) -> dict[str, Any]:
        """Return the content of `origin.json`; images without labels only where there are some."""
        content = asdict(self)
        if not self.unlabelled:
            del content["unlabelled"], content["num_unlabelled"]
        return content


def bind(folder: Path, setup: Setup, *, new_data: bool = False) -> tuple[str, ...]:
    """Bind a run folder to data and networks' code, or check that they are those of the run.

    Called before anything is trained, because a changed teacher would be trained. A folder that is
    older than this record gets one now, unless it names other data.

    Args:
        folder: The run folder, claimed by this process.
        setup: What the run is started with.
        new_data: Put the results so far aside if the folder is bound to something else.

    Returns:
        Notes for the user, one sentence each.

    Raises:
        UserError: If the data or the code has changed; names the changes.
    """
    now = _origin(setup)
    if aside := finish_putting_aside(folder):
        _write(folder, now, setup.dataset)
        return (f"the results of before were being put aside: now all of them are in {aside}.",)
    found = _compare(folder, now, setup, new_data)
    if found.changes and not new_data:
        raise UserError(f"{folder}: {found.changes}. {_WAYS_ON}")
    if found.changes:
        notes = (f"{found.changes}: the results so far are in {put_aside(folder)}.",)
        _write(folder, now, setup.dataset)
        return notes
    _write(folder, replace(now, weights=found.weights), setup.dataset)
    return found.notes


def bind_weights(folder: Path, teacher_path: Path) -> None:
    """Bind a run folder to its teacher's weights, or check that they are those of the run.

    Args:
        folder: The run folder; a folder that is older than the record is left as it is.
        teacher_path: Folder of the kept teacher.

    Raises:
        UserError: If the weights differ from those of the run.
    """
    path = folder / ORIGIN_FILE
    if not path.exists():
        return
    if aside := being_put_aside(folder):
        raise UserError(
            f"{folder}: its results are being put aside in {aside}, which was cut short. The "
            "command that began the run finishes that."
        )
    bound = read_record(path, Origin, "Restore it from a copy, or choose another name.")
    check_file(teacher_path / WEIGHTS_FILE, rebuild_teacher(teacher_path))
    weights = sha256(teacher_path / WEIGHTS_FILE)
    if bound.weights and bound.weights != weights:
        raise UserError(
            f"{folder}: the teacher has other weights than when the run began "
            f"({teacher_path}): it was trained or loaded again. Choose another name (--set "
            "name=...), or restore the teacher's folder."
        )
    if bound.weights != weights:
        write_json(path, replace(bound, weights=weights).record())


def check_networks(folder: Path, experiment: Experiment, dataset: Dataset, capacity: str) -> None:
    """Refuse to train a student again if its network or its teacher has changed since the run.

    Args:
        folder: The run folder; a folder that is older than the record is not checked.
        experiment: The experiment of the run.
        dataset: The data of the run.
        capacity: Size of the student.

    Raises:
        UserError: Naming what has changed.
    """
    path = folder / ORIGIN_FILE
    if not path.exists():
        return
    before = read_record(path, Origin, "Restore it from a copy, or choose another name.")
    students = [s for s in students_of(experiment) if getattr(s, "name", capacity) == capacity]
    now = _with_networks(before, experiment, dataset, students)
    tables = {"teacher", *map(student_table, students)}
    given = {table: weights for table, weights in before.given.items() if table in tables}
    if changes := _network_changes(replace(before, given=given), now):
        raise UserError(
            f"{folder}: {'; '.join(changes)} since the run began, so that another student would be "
            "trained again: restore what has changed, or pick without --refit."
        )


def _origin(setup: Setup) -> Origin:
    content, experiment, dataset = setup.dataset.content(), setup.experiment, setup.dataset
    origin = Origin(
        content.digest,
        content.images,
        Code(),
        unlabelled=setup.taught.unlabelled,
        num_unlabelled=setup.taught.num_unlabelled,
    )
    return _with_networks(origin, experiment, dataset, students_of(experiment))


def _with_networks(
    origin: Origin,
    experiment: Experiment,
    dataset: Dataset,
    students: Sequence[StudentConfig | LadderStudent],
) -> Origin:
    """Return the record with the networks and given weights as they are now."""
    given = {"teacher": weights_identity(experiment, dataset)}
    for student in students:
        path = Path(getattr(student, "weights", "")).expanduser()
        is_there = from_file(student) and path.is_file()
        given[student_table(student)] = sha256(path) if is_there else ""
    inputs = {"teacher": teacher_preprocessing(experiment, dataset)}
    inputs |= {student_table(each): student_preprocessing(each, dataset) for each in students}
    return replace(
        origin,
        code=read_code(experiment, dataset),
        students={student_table(each): read_student_code(each, dataset) for each in students},
        given={table: weights for table, weights in given.items() if weights},
        inputs=inputs,
    )


def _write(folder: Path, origin: Origin, dataset: Dataset) -> None:
    """Write the record and, where it is missing, the list of the images of each split."""
    write_json(folder / ORIGIN_FILE, origin.record())
    listed = dataset.path / SPLITS_FILE
    if listed.is_file() and not (folder / SPLITS_FILE).is_file():
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


@dataclass(frozen=True)
class _Compared:
    """How a run folder differs from what it is started with now.

    Attributes:
        changes: What has changed, in words; empty if nothing has.
        notes: Notes for the user if nothing has changed.
        weights: Hash of the teacher's weights that the folder is bound to.
    """

    changes: str = ""
    notes: tuple[str, ...] = ()
    weights: str = ""


def _compare(folder: Path, now: Origin, setup: Setup, new_data: bool) -> _Compared:
    path = folder / ORIGIN_FILE
    if not path.exists():
        return _compare_older(folder, setup, new_data)
    before = read_record(path, Origin, "Restore it from a copy, or choose another name.")
    found = [
        *_data_changes(folder, before, now, setup.dataset),
        *_unlabelled_changes(before, now),
        *_network_changes(before, now),
    ]
    changes = f"{'; '.join(found)} since the run began" if found else ""
    return _Compared(changes, weights=before.weights)


def _compare_older(folder: Path, setup: Setup, new_data: bool) -> _Compared:
    """Compare a run without a record by other traces of its data.

    Without any trace, the run goes on and the user gets a note; with `new_data`, the run is taken
    to be of other data.
    """
    known, dataset = data_of(folder), setup.dataset
    if not all(is_of(dataset, fingerprint) for fingerprint in known):
        return _Compared("its result is of other data (an older krscale did not note which images)")
    if known or not has_begun(folder):
        return _Compared()
    older = "it is older than the record of its data, and nothing in it tells which images they are"
    if new_data:
        return _Compared(older)
    other = no_store_is_of(dataset, setup.experiment.cache_path / "stores")
    hint = ", although no store that is kept is of these" if other else ""
    note = f"{folder}: {older}: taken to be those of today{hint} (--new-data would begin again)."
    return _Compared(notes=(note,))


def _network_changes(before: Origin, now: Origin) -> list[str]:
    changes = []
    codes = {"teacher": (before.code, now.code)}
    for table in before.students.keys() & now.students.keys():
        codes[table] = before.students[table], now.students[table]
    tables = before.given.keys() | now.given.keys()
    given = sorted(name for name in tables if before.given.get(name) != now.given.get(name))
    for table, (old, new) in sorted(codes.items()):
        # Changed weights change the outputs; the last line of this function reports the weights.
        known = replace(old, outputs=()) if table in given else old
        if changed := compare_code(known, new):
            changes.append(f"the code of {table} has changed: {changed}")
    for table in sorted(before.inputs.keys() & now.inputs.keys()):
        was, is_now = before.inputs[table], now.inputs[table]
        if was != is_now:
            changes.append(
                f"the images of {table} were prepared as {was.describe()}, and now as "
                f"{is_now.describe()}"
            )
    return [*changes, *(f"the weights of {table} have changed" for table in given)]
