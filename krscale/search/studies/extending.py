"""`--set search.trials_per_size=+8`: continue a finished search with a larger budget.

The addition counts from the budget with which the search last finished, which is recorded in the
run folder. So the same command, repeated after a crash, continues and adds nothing twice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from krscale.config import RENAMED, Experiment, load, read_record
from krscale.errors import UserError
from krscale.files import reading, write_json
from krscale.runs.experiment_file import BUDGETS
from krscale.storage.run_mirror import newest

FINISHED_FILE = "finished.json"
_GROWTH = re.compile(r"\s*(?P<field>[\w.]+)\s*=\s*\+\s*(?P<by>\d+)\s*")
_TRIALS_OF = "trials of "
"""Prefix of the name of a study in that file."""
_REBUILD = (
    "Delete it, and give the whole number instead of an addition; the search writes it again "
    "when it ends."
)


def load_or_extend(path: str | None, overrides: Sequence[str]) -> Experiment:
    """Read an experiment, resolving budgets given as an addition to those of a finished run.

    Args:
        path: The experiment file, None for the embedded default.
        overrides: Assignments given with `--set`.

    Raises:
        UserError: If a value other than a budget is added to, if one is added to more than once, or
            if the run has never finished.
        StorageError: If the storage is a URI and cannot be read.
    """
    found = [(text, _GROWTH.fullmatch(text)) for text in overrides]
    added = {RENAMED.get(m["field"], m["field"]): int(m["by"]) for _, m in found if m}
    plain = [text for text, match in found if not match]
    experiment = load(path, plain)
    if not added:
        return experiment
    for field in added:
        if field not in BUDGETS:
            raise UserError(
                f"--set {field}=+{added[field]}: only {' and '.join(sorted(BUDGETS))} can be added "
                f"to; give the value itself."
            )
        matches = [match for _, match in found if match]
        given = [m[0].strip() for m in matches if RENAMED.get(m["field"], m["field"]) == field]
        if len(given) > 1:
            raise UserError(
                f"--set {field}: is added to {len(given)} times ({', '.join(given)}); add once."
            )
    with newest(experiment.run_path, FINISHED_FILE) as finished:  # of any machine
        before = finished_budgets(finished.parent)
    if before is None:
        raise UserError(
            f"{experiment.run_path}: nothing to add to: no search has finished there. Give the "
            f"whole number instead of an addition, and choose the run with name and storage_path."
        )
    return load(path, [*plain, *(f"{field}={before[field] + by}" for field, by in added.items())])


def remember_budgets(experiment: Experiment, num_trials: Mapping[str, int]) -> None:
    """Record in the run folder that the search finished, and with which budgets.

    Args:
        experiment: The experiment, which contains the budgets.
        num_trials: Number of trials that count, by name of the tuning study.
    """
    trials = {f"{_TRIALS_OF}{name}": number for name, number in num_trials.items()}
    write_json(experiment.run_path / FINISHED_FILE, {**_budgets(experiment), **trials})


def finished_budgets(folder: Path) -> dict[str, int] | None:
    """Return the budgets with which the search of a run last finished; None if it never did.

    Raises:
        DamagedFileError: If the record in the run folder is damaged.
    """
    found = _read(folder)
    if found is None:
        return None
    with reading(folder / FINISHED_FILE, _REBUILD):
        budgets = {RENAMED.get(field, field): number for field, number in found.items()}
        return {field: budgets[field] for field in BUDGETS}


def finished_trials(folder: Path) -> dict[str, int]:
    """Return how many trials each tuning study had when the search last finished, by study name.

    Empty if it never did, or if it was an older krscale, which did not record it.

    Raises:
        DamagedFileError: As for `finished_budgets`.
    """
    found = _read(folder) or {}
    return {
        name.removeprefix(_TRIALS_OF): number
        for name, number in found.items()
        if name.startswith(_TRIALS_OF)
    }


def _read(folder: Path) -> dict[str, int] | None:
    path = folder / FINISHED_FILE
    return read_record(path, dict[str, int], _REBUILD) if path.is_file() else None


def _budgets(experiment: Experiment) -> dict[str, int]:
    config = experiment.search
    return {
        "search.trials_per_size": config.trials_per_size,
        "search.num_final_seeds": config.num_final_seeds,
    }
