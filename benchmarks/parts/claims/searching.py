"""Search every family with krscale itself, and read the results from its run folder."""

from __future__ import annotations

import json

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from krscale.cli.app import main
from krscale.config import Experiment
from krscale.errors import UserError
from krscale.report import Curve, read_curve
from krscale.report.result import CURVE_FILE
from krscale.runs.experiment_file import read_experiment
from krscale.search.space.space import load_space
from krscale.search.studies.retries import SEED
from krscale.search.studies.trial_spec import FinalKey
from krscale.setup.plan import describe
from parts.claims.families import Family
from parts.claims.records import Record
from parts.claims.tasks import TaskRun


def search(run: TaskRun, family: Family, number: int, *, quiet: bool) -> None:
    """Run a search of a family to its end, or continue it.

    Raises:
        UserError: If `krscale tune` refuses it, e.g. because the folder holds another experiment.
    """
    overrides = run.overrides(family, number)
    arguments = [str(run.task.path), *(p for change in overrides for p in ("--set", change))]
    if code := main(["tune", *arguments, *(["--quiet"] if quiet else [])]):
        raise UserError(f"{run.task.name}, {family.name}: the search ended with exit code {code}.")


def is_finished(experiment: Experiment) -> bool:
    """Return whether exactly this experiment, including its search space, has run to its end."""
    folder = experiment.run_path
    if not (folder / CURVE_FILE).is_file():
        return False
    same = read_experiment(folder).fingerprint() == experiment.fingerprint()
    bound = json.loads((folder / "experiment.json").read_text(encoding="utf-8"))["bound"]
    space = load_space(experiment, describe(experiment).num_taps).describe()
    return same and bound["space"] == space


def read_records(family: Family, experiment: Experiment) -> tuple[Curve, list[Record]]:
    """Return the curve of a finished family, and a record per method and size."""
    curve = read_curve(experiment.run_path)
    journal = JournalFileBackend(str(experiment.run_path / "journal.log"))
    storage = JournalStorage(journal)
    records = [
        Record(
            label=family.label_of(method),
            capacity=size.capacity,
            test=dict(zip(result.seeds, result.test_accuracies, strict=True)),
            val=dict(zip(result.seeds, result.val_accuracies, strict=True)),
            curves=_final_curves(storage, method, size.capacity),
            num_trials=result.num_trials,
            num_pruned=result.num_pruned,
            num_failed=result.num_failed,
            searches=(tuple(result.seeds),),
            best=(result.best,),
        )
        for size in curve.sizes
        for method, result in size.methods.items()
    ]
    return curve, records


def _final_curves(storage: JournalStorage, method: str, capacity: str) -> dict[int, list[float]]:
    name = FinalKey(method, capacity).name
    study = optuna.load_study(study_name=name, storage=storage)
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return {
        int(trial.user_attrs[SEED]): [v for _, v in sorted(trial.intermediate_values.items())]
        for trial in complete
    }
