"""How the drills find faults: a journal with one of each, and one without."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from running import ROOT

PLANNED = {False: 2, True: 1}


@pytest.fixture
def recorded_trials(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    module = importlib.import_module("parts.recorded_trials")
    monkeypatch.setattr(module, "_faults_in_mlflow", lambda run, trials: [])
    return module


def studies(run: Path) -> tuple[optuna.Study, optuna.Study]:
    storage = JournalStorage(JournalFileBackend(str(run / "journal.log")))
    tuned = optuna.create_study(storage=storage, study_name="kr@1/4", direction="maximize")
    final = optuna.create_study(storage=storage, study_name="kr@1/4 final", direction="maximize")
    first, second = tuned.ask(), tuned.ask()
    tuned.tell(first, 0.5)
    second.set_user_attr("interrupted", "the search was interrupted")
    tuned.tell(second, state=TrialState.FAIL)
    again = tuned.ask()
    again.set_user_attr("retry_of", second.number)
    tuned.tell(again, 0.6)
    winner = final.ask()
    winner.set_user_attr("seed", 1000)
    final.tell(winner, 0.6)
    return tuned, final


def test_a_search_as_planned_has_no_fault(tmp_path: Path, recorded_trials: ModuleType) -> None:
    studies(tmp_path)
    assert recorded_trials.find_faults(tmp_path, PLANNED, 1) == []
    assert recorded_trials.find_faults(tmp_path, {False: 3, True: 1}, 1) == [
        "kr@1/4: 2 trials instead of 3"
    ]


def test_what_is_lost_doubled_or_running_is_named(
    tmp_path: Path, recorded_trials: ModuleType
) -> None:
    tuned, final = studies(tmp_path)
    doubled = tuned.ask()
    doubled.set_user_attr("retry_of", 1)
    tuned.tell(doubled, 0.6)
    lost = tuned.ask()
    lost.set_user_attr("interrupted", "its worker was lost")
    tuned.tell(lost, state=TrialState.FAIL)
    tuned.ask()
    twice = final.ask()
    twice.set_user_attr("seed", 1000)
    final.tell(twice, 0.6)
    assert set(recorded_trials.find_faults(tmp_path, PLANNED, 1)) == {
        "kr@1/4#5 is RUNNING in Optuna",
        "kr@1/4: 4 trials instead of 2",
        "kr@1/4#1 was run again 2 times",
        "kr@1/4#4 was interrupted and not run again",
        "kr@1/4 final: 2 trials instead of 1",
        "kr@1/4 final: seed 1000 was run 2 times",
    }
