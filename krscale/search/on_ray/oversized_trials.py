"""Withdraw trials that wait for more workers than are left, if fewer workers could train them.

A trial with a variable number of workers is handed out for all workers that have no trial. When a
node is lost, Ray removes the node some seconds later than its workers. A trial that is handed out
in between would wait for a node to join, while other workers are idle.
"""

from __future__ import annotations

from typing import Any, Protocol

from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from krscale.search.on_ray.stalled_trials import live_actors


class TrialSource(Protocol):
    """The object that hands trials out."""

    def oversized(self) -> list[str]:
        """Return Tune's ids of the trials that wait for more workers than are left."""

    def withdraw(self, trial_id: str) -> None:
        """Withdraw a trial, which is handed out again later."""


class OversizedTrials(tune.Callback):
    """Checks the waiting trials between Tune's steps.

    Args:
        searcher: Returns the trials that are too large, and withdraws one of them.
    """

    def __init__(self, searcher: TrialSource) -> None:
        self.searcher = searcher
        self.controller: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing; Tune pickles callbacks for `Tuner.restore`, which krscale never calls."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Withdraw one trial that waits in vain; a trial with a started worker does not wait."""
        if self.controller is None:
            return
        in_vain = set(self.searcher.oversized())
        if not in_vain:
            return
        actors = live_actors(self.controller)
        for trial in trials:
            if trial.trial_id in in_vain and trial.trial_id not in actors:
                self.searcher.withdraw(trial.trial_id)
                if trial in self.controller._staged_trials:  # else Tune keeps a worker for it
                    self.controller._unstage_trial_with_resources(trial)
                self.controller.stop_trial(trial)
                return
