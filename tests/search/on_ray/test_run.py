"""What a search refuses on a cluster, and which errors in Tune end a search or a trial."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.utils.object_cache import _ObjectCache

from krscale.config import load
from krscale.errors import StorageError, UserError
from krscale.search.on_ray import run
from krscale.search.on_ray.run import LadderScheduler
from krscale.search.on_ray.searcher import LadderSearcher, Running
from krscale.search.space.space import SearchSpace


@pytest.mark.parametrize("where", ["the experiment", "the space"])
def test_settings_of_gpus_are_refused_once_where_the_cluster_has_none(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Fails if only each trial refuses the setting."""
    experiment = load(None, ["train.channels_last=true"] if where == "the experiment" else [])
    searched = {"train.channels_last": CategoricalDistribution((False, True))}
    space = SearchSpace("", {"kd": searched if where == "the space" else {}})
    ladder = cast(
        Any, SimpleNamespace(experiment=experiment, config=experiment.search, space=space)
    )
    monkeypatch.setattr(run, "require_workers", lambda *_: None)
    monkeypatch.setattr(run, "has_gpus", lambda _: False)
    with pytest.raises(UserError, match=r"train.channels_last: .*the cluster has no GPU"):
        run.require_possible(ladder, {"CPU": 1.0})


class Refusing:
    """A ladder that raises a PermissionError in one of its methods."""

    def __init__(self, what: str) -> None:
        self.experiment = load(None, ["train.num_epochs=4", "search.grace_epochs=1"])
        self.what, self.ended, self.num_failed = what, list[TrialState](), 0

    def report(self, *_: object) -> bool:
        self._do("report")
        return False

    def finish(self, trial: object, state: TrialState, *_: object) -> None:
        self._do("finish")
        self.ended.append(state)

    def _do(self, what: str) -> None:
        if what == self.what:
            raise PermissionError(13, "Permission denied", "journal.log")


def tune_with(ladder: Any) -> tuple[Any, Any]:
    """Return the parts of Tune's controller that end trials, and a trial that has just run."""
    searcher = LadderSearcher(ladder, (), cast(Any, None))
    controller: Any = object.__new__(TuneController)
    controller._search_alg, controller._fail_fast = searcher, False
    controller._scheduler_alg = LadderScheduler(searcher, cast(Any, SimpleNamespace(ended={})))
    controller._staged_trials, controller._actor_cache = [], _ObjectCache()
    trial = SimpleNamespace(
        trial_id="x", status=TuneTrial.RUNNING, last_result={"history": [{"epoch": 4.0}]},
        handle_error=lambda error: None, should_recover=lambda: False,
        error_file=None, pickled_error_file=None, placement_group_factory="two workers",
    )  # fmt: skip
    searcher.trials["x"] = Running(cast(Any, SimpleNamespace(name="x")), {})
    return controller, trial


@pytest.mark.parametrize("what", ["report", "finish"])
def test_what_fails_in_the_driver_at_the_end_of_a_trial_ends_the_search(what: str) -> None:
    """Fails if the trial is recorded as failed, or the search goes on and waits for it."""
    ladder = Refusing(what)
    controller, trial = tune_with(ladder)
    with pytest.raises(PermissionError):
        controller.stop_trial(trial)
    assert ladder.ended == []


def test_a_trial_that_failed_as_a_used_worker_was_given_to_it_keeps_no_place(
    tmp_path: Path,
) -> None:
    """Tune keeps an idle worker for each staged trial; trials of other sizes would wait for it."""
    controller, trial = tune_with(Refusing("nothing"))
    controller._staged_trials = [trial]
    controller._actor_cache.increase_max(trial.placement_group_factory)
    trial.error_file = tmp_path / "error.txt"
    trial.error_file.write_text("ValueError: its own")
    controller._scheduler_alg.on_trial_error(controller, trial)
    assert controller._staged_trials == []
    assert controller._actor_cache.total_max_objects == 0
    controller._search_alg.on_trial_complete("x", error=True)
    assert controller._search_alg.ladder.ended == [TrialState.FAIL]


def test_a_worker_that_cannot_work_on_the_run_ends_the_search(tmp_path: Path) -> None:
    """Its node may have joined after the nodes were compared; no trial counts for that."""
    ladder = Refusing("nothing")
    controller, trial = tune_with(ladder)
    trial.error_file = tmp_path / "error.txt"
    other = "seven has other versions than here: torch 2.5 (here 2.13)."
    trial.error_file.write_text(f"krscale.errors.NodeError: {other}\n")
    with pytest.raises(StorageError, match=re.escape(other)):
        controller._scheduler_alg.on_trial_error(controller, trial)
    assert ladder.ended == []
