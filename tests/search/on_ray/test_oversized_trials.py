"""Trials that wait for more workers than are left are handed out again with fewer workers."""

from types import SimpleNamespace
from typing import Any

from krscale.search.on_ray.oversized_trials import OversizedTrials


class Searcher:
    def __init__(self, *oversized: str) -> None:
        self.ids, self.taken = list(oversized), list[str]()

    def oversized(self) -> list[str]:
        return self.ids

    def withdraw(self, trial_id: str) -> None:
        self.taken.append(trial_id)


class Controller:
    """A fake of Tune's controller, with staged trials and actors for some of them."""

    def __init__(self, trials: list[Any], live: list[Any]) -> None:
        self.stopped = list[str]()
        actors = {f"actor of {trial.trial_id}": ("handle", None) for trial in live}
        self._actor_manager = SimpleNamespace(_live_actors_to_ray_actors_resources=actors)
        self._trial_to_actor = SimpleNamespace(
            items=lambda: [(trial, f"actor of {trial.trial_id}") for trial in trials]
        )
        self._staged_trials = list(trials)

    def _unstage_trial_with_resources(self, trial: Any) -> None:
        self._staged_trials.remove(trial)

    def stop_trial(self, trial: Any) -> None:
        self.stopped.append(trial.trial_id)


def test_one_that_waits_in_vain_is_taken_from_tune_and_handed_back() -> None:
    trials: list[Any] = [SimpleNamespace(trial_id=name) for name in ("a", "b", "c")]
    searcher = Searcher("b", "c")
    watch = OversizedTrials(searcher)
    watch.on_step_begin(0, trials)  # before the controller is set
    watch.controller = Controller(trials, live=[trials[1]])
    watch.on_step_begin(0, trials)
    assert searcher.taken == watch.controller.stopped == ["c"], "b has its workers"
    assert watch.controller._staged_trials == trials[:2]
    searcher.ids = []
    watch.on_step_begin(0, trials)
    assert searcher.taken == ["c"]
