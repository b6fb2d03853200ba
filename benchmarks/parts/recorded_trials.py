"""The records of a run's trials in Optuna's journal and in MLflow."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from mlflow.tracking import MlflowClient
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend


@dataclass(frozen=True)
class TrialRecord:
    """A trial as recorded in the journal."""

    study: str
    number: int
    state: str
    value: float | None
    content: str
    interrupted: bool
    retry_of: int | None
    seed: int | None

    @property
    def ended(self) -> bool:
        """Whether its state is final."""
        return self.state in ("COMPLETE", "PRUNED", "FAIL")


def recorded_trials(run: Path) -> dict[str, TrialRecord]:
    """Return every trial in a run's journal, by study and number; none if there is no journal."""
    journal = run / "journal.log"
    if not journal.exists():
        return {}
    storage = JournalStorage(JournalFileBackend(str(journal)))
    return {
        f"{name}#{trial.number}": _record(name, trial)
        for name in optuna.get_all_study_names(storage)
        for trial in optuna.load_study(study_name=name, storage=storage).trials
    }


def find_faults(run: Path, planned: dict[bool, int], num_studies: int) -> list[str]:
    """Return what is lost, duplicated or still running in a finished run; empty if all is well.

    Args:
        run: Its folder; MLflow's database is beside it.
        planned: Trials that each study must have, by whether it is one of finals.
        num_studies: Studies with trials of each of the two kinds.
    """
    trials = recorded_trials(run)
    faults = [f"{key} is {t.state} in Optuna" for key, t in trials.items() if not t.ended]
    studies = Counter(t.study for t in trials.values())
    if len(studies) != 2 * num_studies:
        faults.append(f"{len(studies)} studies instead of {2 * num_studies}")
    for study in studies:
        own = [t for t in trials.values() if t.study == study]
        counted = [t for t in own if not t.interrupted]
        wanted = planned[study.endswith(" final")]
        if len(counted) != wanted:
            faults.append(f"{study}: {len(counted)} trials instead of {wanted}")
        retries = Counter(t.retry_of for t in own if t.retry_of is not None)
        faults += [f"{study}#{n} was run again {k} times" for n, k in retries.items() if k > 1]
        lost = {t.number for t in own if t.interrupted} - set(retries)
        faults += [f"{study}#{number} was interrupted and not run again" for number in lost]
        if study.endswith(" final"):
            seeds = Counter(t.seed for t in counted)
            faults += [f"{study}: seed {s} was run {k} times" for s, k in seeds.items() if k > 1]
    return faults + _faults_in_mlflow(run, trials)


def _faults_in_mlflow(run: Path, trials: dict[str, TrialRecord]) -> list[str]:
    client = MlflowClient(f"sqlite:///{run.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(run.name)
    if experiment is None:
        return ["no experiment in MLflow"]
    runs = list(client.search_runs([experiment.experiment_id], max_results=5000))
    keys = Counter(r.data.tags["krscale.key"] for r in runs)
    states = Counter(
        r.data.tags["krscale.state"] for r in runs if "mlflow.parentRunId" in r.data.tags
    )
    faults = [f"{key} is in MLflow {k} times" for key, k in keys.items() if k > 1]
    faults += [
        f"{r.data.tags['krscale.key']} is {r.info.status} in MLflow"
        for r in runs
        if r.info.status not in ("FINISHED", "KILLED", "FAILED")
    ]
    expected = Counter(t.state for t in trials.values() if t.ended)
    if states != expected:
        faults.append(f"MLflow has {dict(states)}, Optuna {dict(expected)}")
    return faults


def _record(study: str, trial: optuna.trial.FrozenTrial) -> TrialRecord:
    attrs: dict[str, Any] = dict(trial.user_attrs)
    return TrialRecord(
        study=study,
        number=trial.number,
        state=trial.state.name,
        value=trial.value,
        content=repr((sorted(trial.params.items()), sorted(trial.intermediate_values.items()))),
        interrupted=bool(attrs.get("interrupted")),
        retry_of=attrs.get("retry_of"),
        seed=attrs.get("seed"),
    )
