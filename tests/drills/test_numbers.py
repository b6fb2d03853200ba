"""Losses that are not finite: a learning rate of 1e30 beside ones that work."""

from pathlib import Path

import pytest
from drill_searches import SMALL, own_ray, trials_of
from drilling import Drill
from optuna.trial import TrialState
from recorded import mlflow_runs

from krscale.config import load
from krscale.search.session import run_session

pytestmark = [pytest.mark.drill, pytest.mark.cluster, pytest.mark.timeout(600)]


def test_a_learning_rate_of_1e30_costs_its_trial(drill: Drill, tmp_path: Path) -> None:
    drill.must_hold("its trial is FAIL in Optuna, in MLflow and in Tune; the others are complete")
    drill.must_hold("the reason names what broke, in one sentence")
    (tmp_path / "space.toml").write_text(
        '[common."train.learning_rate"]\ntype = "categorical"\nchoices = [0.1, 1e30, 0.05]\n'
    )
    settings = (
        *SMALL, "tracking.enabled=true", f"storage_path={tmp_path}", "name=poisoned",
        f"search.space={tmp_path / 'space.toml'}", "train.num_epochs=2",
    )  # fmt: skip
    experiment = load(None, list(settings))
    drill.injected("train.learning_rate = 1e30 in one trial of three")
    with own_ray(2):
        run_session(experiment, quiet=True)
    trials = trials_of(experiment.run_path)["plain@1/4"]
    states = {trial.params["train.learning_rate"]: trial.state for trial in trials}
    complete, fail = TrialState.COMPLETE, TrialState.FAIL
    assert states == {0.1: complete, 0.05: complete, 1e30: fail}
    tracked = {
        run.data.params["train.learning_rate"]: run.info.status
        for run in mlflow_runs(tmp_path)
        if run.data.tags["krscale.kind"] == "trial"
    }
    assert tracked == {"0.1": "FINISHED", "0.05": "FINISHED", "1e+30": "FAILED"}
    errors = list((experiment.run_path / "tune").glob("*/error.txt"))
    assert len(errors) == 1
    drill.held("FAIL, FAILED and one error of Tune's; two trials and the final are complete")
    (failed,) = [trial for trial in trials if trial.state is fail]
    reason = failed.user_attrs["error"]
    assert "is not finite" in reason
    assert "\n" not in reason
    drill.held(reason)
