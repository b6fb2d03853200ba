"""The whole path: a search on a real Ray, its journal, its curve and its MLflow runs."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest
from drilling import Drill
from finished_search import without_ray
from mlflow.tracking import MlflowClient
from optuna.trial import TrialState
from recorded import journal, mlflow_runs
from running import ROOT, SMALL, command, environment, here, overrides

from krscale.files import read_json

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(400),
    # MLflow's own models use a loader strategy that its database library has deprecated.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
]

METHODS = ("plain", "kr")
CAPACITIES = ("1/16", "1/4")
TRIALS, FINALS, NUM_EPOCHS = 2, 2, 3
OWN = (*SMALL, "teacher.num_epochs=1", f"search.methods={list(METHODS)}")
WATCHED = "teacher.model=watched_teacher:Watched"


def check_complete(run: Path, num_sizes: int = len(CAPACITIES)) -> None:
    """Exactly the planned trials, in Optuna and MLflow alike, and none left running."""
    studies = journal(run)
    assert len(studies) == 2 * len(METHODS) * num_sizes
    counted = 0
    for name, study in studies.items():
        trials = [t for t in study.trials if not t.user_attrs.get("interrupted")]
        assert len(trials) == (FINALS if name.endswith("final") else TRIALS), name
        assert all(trial.state.is_finished() for trial in study.trials)
        counted += len(study.trials)
    runs = mlflow_runs(run.parent)
    assert {r.info.status for r in runs} <= {"FINISHED", "KILLED", "FAILED"}
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    children = [r for r in runs if "mlflow.parentRunId" in r.data.tags]
    assert sorted(r.data.tags["krscale.method"] for r in parents) == sorted(METHODS)
    assert len(children) == counted


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, empty_database: Path
) -> tuple[Path, dict[str, Any]]:
    storage = tmp_path_factory.mktemp("storage")
    # A storage without one: tests/cluster/test_job_submit.py.
    shutil.copy(empty_database, storage / "mlflow.db")
    # A relative path, as by default: workers run in other folders and must find the same place.
    relative = os.path.relpath(storage, ROOT)
    settings = (*OWN, f"storage_path={relative}", "name=small", WATCHED)
    done = command("tune", ["--json", *overrides(*settings)])
    assert done.returncode == 0, done.stderr
    return storage / "small", json.loads(done.stdout)


def test_curve_compares_methods_with_equal_budgets(finished: tuple[Path, dict[str, Any]]) -> None:
    run, printed = finished
    curve = read_json(run / "curve.json")
    assert curve == printed
    assert [size["capacity"] for size in curve["sizes"]] == list(CAPACITIES)
    sizes = [size["num_parameters"] for size in curve["sizes"]]
    assert sizes == sorted(sizes)
    assert curve["teacher"]["num_parameters"] > sizes[-1]
    for size in curve["sizes"]:
        assert set(size["methods"]) == set(METHODS)
        for result in size["methods"].values():
            assert result["num_trials"] == TRIALS
            assert result["ended_by"] == "trials_per_size"
            assert len(result["test_accuracies"]) == FINALS
            assert len(set(result["seeds"])) == FINALS
            assert 0.1 < result["test_accuracy"] <= 1.0, "better than guessing among ten digits"
    assert curve["budgets"]["trials_per_size"] == TRIALS
    assert (run / "curve.png").stat().st_size > 10_000


def test_journal_and_mlflow_agree(finished: tuple[Path, dict[str, Any]]) -> None:
    run, _ = finished
    check_complete(run)
    states = {t.state for study in journal(run).values() for t in study.trials}
    assert states <= {TrialState.COMPLETE, TrialState.PRUNED}
    killed = sum(r.info.status == "KILLED" for r in mlflow_runs(run.parent))
    pruned = [t for s in journal(run).values() for t in s.trials if t.state is TrialState.PRUNED]
    assert killed == len(pruned)
    reasons = sorted(t.user_attrs["stopped"] for t in pruned)
    tags = (r.data.tags.get("krscale.stopped") for r in mlflow_runs(run.parent))
    assert sorted(tag for tag in tags if tag) == reasons
    for reason in reasons:
        assert reason.startswith("asha stopped it after epoch ")


def test_mlflow_overlays_the_curves_of_all_methods(finished: tuple[Path, dict[str, Any]]) -> None:
    run, curve = finished
    client = MlflowClient(f"sqlite:///{run.parent / 'mlflow.db'}")
    sizes = {
        "curve": lambda size: size["num_parameters"],
        "curve_by_flops": lambda size: size["flops"],
        "curve_by_latency": lambda size: round(1000 * size["latency_ms"]),
    }
    for parent in mlflow_runs(run.parent):
        if "mlflow.parentRunId" in parent.data.tags:
            continue
        method = parent.data.tags["krscale.method"]
        for axis, split in itertools.product(sizes, ("test", "val")):
            history = client.get_metric_history(parent.info.run_id, f"{axis}/{split}_accuracy")
            assert {m.step: m.value for m in history} == {
                sizes[axis](size): size["methods"][method][f"{split}_accuracy"]
                for size in curve["sizes"]
            }
        artifacts = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
        assert {"curve.png", "curve.json"} <= artifacts
        assert parent.info.status == "FINISHED"
        assert parent.data.tags["krscale.ended_by"] == "trials_per_size"
        used = {d.tags[0].value: d.dataset for d in parent.inputs.dataset_inputs}
        assert set(used) == {"train", "val", "test"}
        fingerprint = curve["data"]["fingerprint"]
        assert all(used[split].digest == f"{fingerprint}-{split}" for split in used)
        number = json.loads(used["train"].profile)["num_images"]
        assert number == curve["data"]["num_train"]


def test_children_hold_params_epochs_and_capacity(finished: tuple[Path, dict[str, Any]]) -> None:
    run, _ = finished
    client = MlflowClient(f"sqlite:///{run.parent / 'mlflow.db'}")
    children = [r for r in mlflow_runs(run.parent) if r.data.tags.get("krscale.kind") == "trial"]
    for child in children:
        assert "train.learning_rate" in child.data.params
        assert child.data.metrics["size/num_parameters"] > 0
        epochs = client.get_metric_history(child.info.run_id, "val/accuracy")
        assert [m.step for m in epochs] == list(range(1, len(epochs) + 1))
        tags = child.data.tags
        assert tags["krscale.budget"] == f"{len(epochs)} of {NUM_EPOCHS} epochs"
        assert child.info.run_name.startswith(tags["krscale.method"])
        assert child.info.run_name.endswith(f"cap={tags['krscale.size']}")
        assert tags["krscale.dirty"] in ("true", "false")
        assert "dirty" not in tags["krscale.commit"]
        store = run.parent / "cache" / "stores" / tags["krscale.store"]
        assert store.is_dir()
        assert {"krscale.data", "krscale.teacher", "krscale.search"} <= set(tags)
    assert any("kr/active_classes" in child.data.metrics for child in children)


def test_same_command_again_runs_nothing_anew(finished: tuple[Path, dict[str, Any]]) -> None:
    run, curve = finished
    before = {name: len(study.trials) for name, study in journal(run).items()}
    settings = (*OWN, f"storage_path={run.parent}", "name=small", WATCHED)
    with without_ray():  # no trial is left to run
        done = here("tune", ["--json", *overrides(*settings)])
    assert done.returncode == 0, done.stderr
    assert {name: len(study.trials) for name, study in journal(run).items()} == before
    again = json.loads(done.stdout)
    for old, new in zip(curve["sizes"], again["sizes"], strict=True):
        assert old == new
    check_complete(run)


def test_report_reads_the_run(finished: tuple[Path, dict[str, Any]]) -> None:
    run, curve = finished
    (run / "curve.png").unlink()
    done = here("report", [str(run)])
    assert done.returncode == 0, done.stderr
    for size in curve["sizes"]:
        assert size["capacity"] in done.stdout
        for result in size["methods"].values():
            assert f"{100 * result['test_accuracy']:.1f}" in done.stdout
    assert (run / "curve.png").exists()
    page = (run / "report.html").read_text()
    for title in ("Which granularity and sparsity won where", "Convergence: was it long enough?"):
        assert f">{title}</h2>" in page
    assert "was not kept for this run" not in page, "the search wrote its insight"


def test_other_experiment_in_the_folder_is_refused(finished: tuple[Path, dict[str, Any]]) -> None:
    run, _ = finished
    settings = (*OWN, f"storage_path={run.parent}", "name=small", WATCHED, "train.num_epochs=4")
    done = here("tune", overrides(*settings))
    assert done.returncode == 2
    assert "train.num_epochs was 3, is now 4" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.drill
def test_sigkill_in_the_middle_loses_and_doubles_nothing(tmp_path: Path, drill: Drill) -> None:
    drill.injected("SIGKILL to the driver while trials with checkpoints run")
    drill.must_hold("the same command completes the search; its trials go on from checkpoints")
    # A checkpoint at every report, so that a trial of a second leaves one.
    own = ("search.checkpoint_seconds=0", "ladder.capacities=['1/16']")
    settings = overrides(*OWN, f"storage_path={tmp_path}", "name=killed", *own)
    argv = [sys.executable, "-m", "krscale.tune", "--quiet", *settings]
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(
        argv, env=environment(), cwd=ROOT, stdout=log, stderr=log, start_new_session=True
    )
    try:
        _wait_for_trials(tmp_path / "killed", 4, process)
    finally:
        # Only the driver is killed, as by the machine's owner; Ray's own processes notice that.
        process.send_signal(signal.SIGKILL)
        process.wait()
        log.close()
    done = command("tune", ["--json", *settings])
    assert done.returncode == 0, done.stderr
    check_complete(tmp_path / "killed", num_sizes=1)
    interrupted = [
        t for s in journal(tmp_path / "killed").values() for t in s.trials
        if t.user_attrs.get("interrupted")
    ]  # fmt: skip
    assert interrupted
    assert all(t.state is TrialState.FAIL for t in interrupted)
    continued = [
        t for s in journal(tmp_path / "killed").values() for t in s.trials
        if "continues" in t.user_attrs
    ]  # fmt: skip
    assert continued, "a running trial goes on from its checkpoint"
    for trial in continued:
        epochs = sorted(trial.intermediate_values)
        assert epochs == list(range(1, len(epochs) + 1)), "early stopping sees every epoch"
    assert not (tmp_path / "killed" / "unfinished").exists()
    drill.held(f"complete, {len(continued)} of {len(interrupted)} went on, none missed an epoch")


def _wait_for_trials(run: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, (run.parent / "log").read_text()
        if (run / "journal.log").exists():
            ended = sum(t.state.is_finished() for s in journal(run).values() for t in s.trials)
            if ended >= count and any(run.glob("unfinished/*/*/*/manifest.json")):
                return
        time.sleep(0.05)
    pytest.fail("the search did not get going")


def test_mlflow_is_not_left_configured() -> None:
    assert mlflow.active_run() is None
