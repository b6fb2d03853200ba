"""`--set search.trials_per_size=+8`: a finished search goes on with a larger budget.

What is added counts from the budget with which the search last finished, which the run folder
remembers. So the same command again after a crash goes on, and adds nothing twice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from krscale.config import RENAMED, Experiment, load, read_record
from krscale.errors import UserError
from krscale.files import reading, write_json
from krscale.runs.experiment_file import BUDGETS

FINISHED_FILE = "finished.json"
_GROWTH = re.compile(r"\s*(?P<field>[\w.]+)\s*=\s*\+\s*(?P<by>\d+)\s*")


def load_or_extend(path: str | None, overrides: Sequence[str]) -> Experiment:
    """Read an experiment, resolving budgets that are given as an addition to a finished run's.

    Args:
        path: The experiment file, None for the embedded default.
        overrides: Assignments of `--set`.

    Raises:
        UserError: If something else than a budget is added to, it is added to more than once, or
            the run has never finished.
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
        given = [match[0].strip() for _, match in found if match and match["field"] == field]
        if len(given) > 1:
            raise UserError(
                f"--set {field}: is added to {len(given)} times ({', '.join(given)}); add once."
            )
    before = finished_budgets(experiment.run_path)
    if before is None:
        raise UserError(
            f"{experiment.run_path}: nothing to add to: no search has finished there. Give the "
            f"whole number instead of an addition, and choose the run with name and storage_path."
        )
    return load(path, [*plain, *(f"{field}={before[field] + by}" for field, by in added.items())])


def remember_budgets(experiment: Experiment) -> None:
    """Note in the run folder that the search finished with these budgets."""
    write_json(experiment.run_path / FINISHED_FILE, _budgets(experiment))


def finished_budgets(folder: Path) -> dict[str, int] | None:
    """Return the budgets with which the search of a run last finished; None if it never did.

    Raises:
        DamagedFileError: If the run folder does not say it any more.
    """
    path = folder / FINISHED_FILE
    if not path.is_file():
        return None
    rebuild = (
        "Delete it, and give the whole number instead of an addition; the search writes it again "
        "when it ends."
    )
    budgets = read_record(path, dict[str, int], rebuild)
    with reading(path, rebuild):
        budgets = {RENAMED.get(field, field): number for field, number in budgets.items()}
        return {field: budgets[field] for field in BUDGETS}


def _budgets(experiment: Experiment) -> dict[str, int]:
    config = experiment.search
    return {
        "search.trials_per_size": config.trials_per_size,
        "search.num_final_seeds": config.num_final_seeds,
    }
