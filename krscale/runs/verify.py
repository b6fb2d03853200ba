"""Comparing all files that a run uses, and all that it has written, with what was written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from krscale.config import read_record
from krscale.errors import UserError
from krscale.export.card import CARD_FILE, EXPORT_AGAIN, check_exported, exported_files, read_card
from krscale.report import read_curve
from krscale.report.result import CURVE_FILE
from krscale.runs.aside import EARLIER, ORIGIN_FILE
from krscale.runs.binding import Origin
from krscale.runs.distill import RESULT_FILE, read_result
from krscale.runs.experiment_file import EXPERIMENT_FILE, read_experiment
from krscale.runs.folder import student_path
from krscale.runs.kinds import require_run
from krscale.runs.verify_cache import (
    Shared,
    look_at_data,
    look_at_given,
    look_at_store,
    look_at_teacher,
)
from krscale.runs.verify_files import Finding, look, look_at_binary, look_at_json
from krscale.runs.weights import rebuild_final, rebuild_refit, rebuild_student
from krscale.training.checkpoint import MANIFEST, STATE, check_checkpoint

_FROM_A_COPY = "Restore it from a copy; deleted, the command that began the run writes it again."
_WRITTEN_AGAIN = "Delete it; the command that made it writes it again."
_READERS: dict[str, Callable[[Path], object]] = {
    EXPERIMENT_FILE: read_experiment,
    CURVE_FILE: read_curve,
    RESULT_FILE: read_result,
    ORIGIN_FILE: lambda folder: read_record(folder / ORIGIN_FILE, Origin),
}


def verify_run(folder: Path) -> tuple[list[Finding], str]:
    """Compare every file of a run, and of the data, teacher and stores that it uses.

    Args:
        folder: Folder of the run; or of an export, of which only its own files are compared.

    Returns:
        A finding for each file, and a note for the user on what was compared, or an empty text.

    Raises:
        UserError: If it is neither.
    """
    if not (folder / EXPERIMENT_FILE).is_file():
        if (folder / CARD_FILE).is_file():
            return list(_exports([folder])), ""
        require_run(folder)  # refuses the folder, and describes it, before its files are searched
    found = [*_records(folder), *_students(folder), *_checkpoints(folder)]
    found += _exports(path.parent for path in sorted((folder / "export").glob(f"*/{CARD_FILE}")))
    try:
        experiment = read_experiment(folder)
    except UserError:
        return found, f"without {folder / EXPERIMENT_FILE}, data, teacher and stores are not found"
    shared = Shared.of(experiment)
    note = "the cache may hold what is of other runs only; all of it is compared: "
    note = f"{note}{shared.note}" if shared.note else ""
    return [*found, *_shared(shared, _bound_weights(folder))], note


def _shared(shared: Shared, bound: str) -> Iterator[Finding]:
    kinds = (
        (shared.given, look_at_given),
        (shared.data, look_at_data),
        (shared.teachers, lambda path: look_at_teacher(path, bound)),
        (shared.stores, look_at_store),
    )
    for folders, look_at in kinds:
        yield from chain.from_iterable(look_at(path) for path in folders if path.is_dir())


def _records(folder: Path) -> Iterator[Finding]:
    """Yield findings on the JSON files of a run folder, without digests and replaced results."""
    for path in sorted(folder.glob("*.json")):
        if path.name.endswith((".before.json", ".digest.json")):
            continue
        again = _FROM_A_COPY if path.name in (EXPERIMENT_FILE, ORIGIN_FILE) else _WRITTEN_AGAIN
        reader = _READERS.get(path.name, partial(_an_object, path.name))
        yield look_at_json(path, again, partial(reader, folder))


def _an_object(name: str, folder: Path) -> object:
    return read_record(folder / name, dict[str, object])


def _students(folder: Path) -> Iterator[Finding]:
    """Yield findings on the weights of students, including missing ones that a result names."""
    finals = {*(folder / "students").rglob("*.safetensors"), *_finals_of_the_curve(folder)}
    for path in sorted(finals):
        yield look_at_binary(path, rebuild_final(path))
    own = folder / "student.safetensors"
    if own.is_file() or (folder / RESULT_FILE).is_file():
        yield look_at_binary(own, rebuild_student(folder))
    for path in sorted((folder / "refit").glob("*/student.safetensors")):
        yield look_at_binary(path, rebuild_refit(path.parent))


def _finals_of_the_curve(folder: Path) -> set[Path]:
    try:
        curve = read_curve(folder)
    except UserError:  # there is none yet, or it is damaged, which is a finding of its own
        return set()
    return {
        student_path(folder, method, size.capacity, seed)
        for size in curve.sizes
        for method, result in size.methods.items()
        for seed in result.seeds
    }


def _checkpoints(folder: Path) -> Iterator[Finding]:
    for state in sorted(folder.rglob(STATE)):
        path = state.parent
        if not (path / MANIFEST).is_file() or path.relative_to(folder).parts[0].startswith(EARLIER):
            continue
        again = f"Delete the folder {path}; its training begins anew, with the same result."

        def compare(path: Path = path) -> bool:
            check_checkpoint(path)
            return True

        yield look(state, compare, again)
        yield look_at_json(path / MANIFEST, again)


def _exports(folders: Iterator[Path] | list[Path]) -> Iterator[Finding]:
    for folder in folders:
        card = folder / CARD_FILE
        yield look_at_json(card, EXPORT_AGAIN, partial(read_card, folder))
        try:
            names = list(exported_files(folder))
        except UserError as error:  # reported above
            for path in sorted(folder.iterdir()):
                if path != card:
                    yield Finding(path, "unverifiable", f"{path}: its hash is in {error}")
            continue
        for name in names:

            def compare(folder: Path = folder, name: str = name) -> bool:
                check_exported(folder, name)
                return True

            yield look(folder / name, compare, EXPORT_AGAIN)


def _bound_weights(folder: Path) -> str:
    """Return the hash of the teacher's weights that a run is bound to; empty if there is none."""
    try:
        return read_record(folder / ORIGIN_FILE, Origin).weights
    except UserError:
        return ""
