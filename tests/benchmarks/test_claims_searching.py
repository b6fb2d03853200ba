from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from parts.claims.families import FAMILIES, QUICK, Family
from parts.claims.searching import is_finished, read_records
from parts.claims.tasks import TASKS, TaskRun

from krscale.config import Experiment
from krscale.report import Curve, CurveSize, MethodResult, TeacherRecord, write_curve
from krscale.search.space.space import load_space
from krscale.setup.plan import describe

KR = next(family for family in FAMILIES if family.name == "kr")
SEEDS = (1000, 1001)


def _run(storage: Path, *changes: str) -> TaskRun:
    return TaskRun(TASKS[0], storage, changes=(*QUICK, *changes))


@pytest.fixture
def finished(tmp_path: Path) -> Experiment:
    """The folder of a finished search of KR, as far as the benchmark reads it."""
    experiment = _run(tmp_path).experiment(KR)
    space = load_space(experiment, describe(experiment).num_taps).describe()
    content = {"experiment": experiment.model_dump(mode="json"), "bound": {"space": space}}
    experiment.run_path.mkdir(parents=True)
    (experiment.run_path / "experiment.json").write_text(json.dumps(content))
    result = MethodResult.over_seeds(
        seeds=SEEDS, val_accuracies=(0.3, 0.4), test_accuracies=(0.2, 0.3),
        num_trials=2, num_pruned=1, num_failed=0, best={"distill.granularity": 3},
    )  # fmt: skip
    curve = Curve(
        name=experiment.name, commit="abc", data={},
        teacher=TeacherRecord(
            model="resnet", width=16, num_parameters=1, flops=1, val_accuracy=0.5, test_accuracy=0.5
        ),
        sizes=(CurveSize(
            capacity="1/4", width=12, num_parameters=1, flops=1, latency_ms=1.0,
            methods={"kr": result},
        ),),
        pareto=(),
    )  # fmt: skip
    write_curve(curve, experiment.run_path)
    return experiment


def test_a_search_is_finished_for_the_very_same_experiment_alone(finished: Experiment) -> None:
    storage = Path(finished.storage_path)
    assert is_finished(finished)
    assert not is_finished(_run(storage, "train.num_epochs=5").experiment(KR))
    assert not is_finished(_run(storage).experiment(Family("other", ("kr",))))


def test_a_search_of_another_space_is_not_finished(finished: Experiment) -> None:
    path = finished.run_path / "experiment.json"
    content = json.loads(path.read_text())
    content["bound"]["space"]["kr"].pop("distill.sparsity")
    path.write_text(json.dumps(content))
    assert not is_finished(finished)


def test_final_curves_come_from_the_journal_by_seed(finished: Experiment) -> None:
    storage = JournalStorage(JournalFileBackend(str(finished.run_path / "journal.log")))
    study = optuna.create_study(storage=storage, study_name="kr@1/4 final", direction="maximize")
    for seed, values in ((1001, (0.1, 0.4)), (1000, (0.2, 0.3))):
        trial = study.ask()
        trial.set_user_attr("seed", seed)
        for epoch, value in enumerate(values, start=1):
            trial.report(value, epoch)
        study.tell(trial, values[-1])
    lost = study.ask()
    lost.set_user_attr("seed", 1002)
    study.tell(lost, state=TrialState.FAIL)

    _, (record,) = read_records(KR, finished)
    assert record.label == "kr"
    assert record.curves == {1000: [0.2, 0.3], 1001: [0.1, 0.4]}
    assert record.test == {1000: 0.2, 1001: 0.3}
    assert record.val == {1000: 0.3, 1001: 0.4}
    assert record.best == ({"distill.granularity": 3},)
    assert record.searches == (SEEDS,)


def test_attention_transfer_of_the_former_loss_is_not_finished(tmp_path: Path) -> None:
    """Its results must not count as the present loss; other families of that time stay finished."""
    for methods, kept in ((("at", "pkt"), False), (("kd", "pkt"), True)):
        family = Family("-".join(methods), methods)
        experiment = _run(tmp_path).experiment(family)
        content = experiment.model_dump(mode="json")
        for name in ("at_reduction", "at_mean_weight"):
            del content["distill"][name]
        space = load_space(experiment, describe(experiment).num_taps).describe()
        experiment.run_path.mkdir(parents=True)
        (experiment.run_path / "experiment.json").write_text(
            json.dumps({"experiment": content, "bound": {"space": space}})
        )
        (experiment.run_path / "curve.json").write_text("{}")
        assert is_finished(experiment) == kept
