"""End trials that make no progress by ending their worker; Tune then starts another worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from krscale.search.studies.checkpoints import sign_path
from krscale.search.studies.ladder import Ladder
from krscale.search.studies.signs import last_sign
from krscale.stalls import Sign, StallWatch
from krscale.storage.run_mirror import sign_of

LOOK_SECONDS = 1.0
"""Interval between two checks."""


class Handed(Protocol):
    """A trial that was handed out: its name and the number of epochs it has reported."""

    @property
    def name(self) -> str:
        """Name of the trial, as in the journal."""

    @property
    def num_epochs(self) -> int:
        """Number of epochs reported so far."""


class StalledTrials(tune.Callback):
    """Checks the running trials between Tune's steps.

    Args:
        ladder: The ladder; its run folder contains the signs, its budget the time of the search.
        running: Returns the trials that were handed out, by Tune's id.

    Attributes:
        ended: Tune's id -> why the trial was ended, in a sentence.
    """

    def __init__(self, ladder: Ladder, running: Callable[[], Iterable[tuple[str, Handed]]]) -> None:
        self.ladder, self.running = ladder, running
        self.watch = StallWatch(ladder.config.stall_seconds)
        self.controller: Any = None
        self.ended: dict[str, str] = {}
        self._next_look = float("-inf")

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing; Tune pickles callbacks for `Tuner.restore`, which krscale never calls."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Check the trials, if it is time to, and end the workers of those that hang."""
        if self.controller is None or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_SECONDS
        actors = live_actors(self.controller)
        signs = {
            trial_id: self._sign(handed)
            for trial_id, handed in self.running()
            if trial_id in actors and trial_id not in self.ended
        }
        at_the_end = self._time_is_up()
        for trial_id, seconds in self.watch.look(signs, at_the_end=at_the_end).items():
            self.ended[trial_id] = self.watch.sentence(seconds, at_the_end=at_the_end)
            ray.kill(actors[trial_id])

    def _sign(self, handed: Handed) -> Sign:
        path = sign_path(self.ladder.run_path, handed.name)
        found = last_sign(path) or sign_of(self.ladder.run_path, path)
        return Sign(found is not None, (found, handed.num_epochs))

    def _time_is_up(self) -> bool:
        limit = self.ladder.config.max_wall_seconds
        return bool(limit) and self.ladder.budget.seconds >= limit


def live_actors(controller: Any) -> dict[str, Any]:
    """Return the actors by trial id, for trials that have one, including actors still starting."""
    live = controller._actor_manager._live_actors_to_ray_actors_resources
    return {
        trial.trial_id: live[tracked][0]
        for trial, tracked in controller._trial_to_actor.items()
        if tracked in live
    }
