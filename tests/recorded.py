"""What a finished run has recorded: Optuna's studies in its journal, and its runs in MLflow."""

from pathlib import Path

import optuna
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend


def journal(run: Path) -> dict[str, optuna.Study]:
    storage = JournalStorage(JournalFileBackend(str(run / "journal.log")))
    names = optuna.get_all_study_names(storage)
    return {name: optuna.load_study(study_name=name, storage=storage) for name in names}


def mlflow_runs(storage: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("krscale")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], max_results=1000))
