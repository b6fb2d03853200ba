"""Withdraws trials that wait for more workers than are left, where fewer could train them.

A trial whose workers may vary in number is handed out for those that have no trial. A node that is
lost is missed by Ray some seconds later than its workers are: a trial that is handed out in between
would wait for a node to join, beside workers that have nothing to do.
"""

from __future__ import annotations

from typing import Any, Protocol

from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from krscale.search.on_ray.stalled_trials import live_actors


class TrialSource(Protocol):
    """What hands trials out."""

    def oversized(self) -> list[str]:
        """Return Tune's ids of the trials that wait for more workers than are left."""

    def withdraw(self, trial_id: str) -> None:
        """Withdraw a trial, which is handed out again later."""


class OversizedTrials(tune.Callback):
    """Looks at the waiting trials from between Tune's steps.

    Args:
        searcher: Returns which trials are too large, and withdraws one.
    """

    def __init__(self, searcher: TrialSource) -> None:
        self.searcher = searcher
        self.controller: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks for `Tuner.restore`, which krscale never calls."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Withdraw one that waits in vain; a worker that has started waits for nothing."""
        if self.controller is None:
            return
        in_vain = set(self.searcher.oversized())
        if not in_vain:
            return
        actors = live_actors(self.controller)
        for trial in trials:
            if trial.trial_id in in_vain and trial.trial_id not in actors:
                self.searcher.withdraw(trial.trial_id)
                if trial in self.controller._staged_trials:  # for which Tune would keep a worker
                    self.controller._unstage_trial_with_resources(trial)
                self.controller.stop_trial(trial)
                return
