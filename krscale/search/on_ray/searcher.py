"""Tune's interface to the ladder: which trials it hands out, and how they end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState
from ray.tune.search import Searcher

from krscale.metrics import VAL_ACCURACY
from krscale.search.on_ray.slots import Slots
from krscale.search.on_ray.trial_error import TrialError
from krscale.search.studies.ladder import Ladder, Next
from krscale.search.studies.retries import Cause
from krscale.search.studies.trial_spec import Assignment

NUM_WORKERS = "num_workers"
"""Key of a trial's number of workers, in the config that Tune passes on."""


@dataclass
class Running:
    """A trial that was handed out and has not ended."""

    assignment: Assignment
    metrics: dict[str, float]
    begun: bool = False  # on a worker; until then it waits for one
    pruned: bool = False
    num_workers: int = 1

    @property
    def name(self) -> str:
        """Name of the trial, as in the journal."""
        return self.assignment.name

    @property
    def num_epochs(self) -> int:
        """Number of epochs reported so far."""
        return int(self.metrics.get("epoch", 0))


class LadderSearcher(Searcher):
    """Tune's interface to the ladder: suggests assignments and receives the results of trials.

    Attributes:
        own_error: An exception raised here, in the driver, at the end of a trial. Tune treats it as
            a failure of that trial and reports it back; the exception then ends the search.
    """

    def __init__(
        self,
        ladder: Ladder,
        milestones: tuple[int, ...],
        slots: Slots,
        say: Callable[[str], None] = print,
    ) -> None:
        super().__init__(metric=VAL_ACCURACY, mode="max")
        self.ladder = ladder
        self.milestones = milestones
        self.slots = slots
        self.say = say
        self.trials: dict[str, Running] = {}
        self.errors: dict[str, TrialError] = {}  # by trial; set by the scheduler
        self.first_error = ""
        self.own_error: Exception | None = None

    @contextmanager
    def keeping_own_errors(self) -> Iterator[None]:
        """Keep an exception of this block as `own_error`, and raise it."""
        try:
            yield
        except Exception as error:
            self.own_error = error
            raise

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing; Tune pickles it for `Tuner.restore`, which krscale never calls."""
        return {}

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Return True: the limit is kept here, by `slots`, since it changes with the cluster."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial's config, None to wait, or FINISHED."""
        if self.gave_up:
            return Searcher.FINISHED
        num_workers = self.slots.next_size(self.sizes(begun=True), self.sizes(begun=False))
        if not num_workers:
            return None
        upcoming = self.ladder.next()
        if upcoming is Next.DONE:
            return Searcher.FINISHED
        if not isinstance(upcoming, Assignment):
            return None
        self.trials[trial_id] = Running(upcoming, {}, num_workers=num_workers)
        return {
            "method": upcoming.key.method,
            "capacity": upcoming.key.capacity,
            "kind": upcoming.key.kind,
            "name": upcoming.name,
            "continues": upcoming.continues,
            "width": upcoming.size.width,
            "seed": upcoming.seed,
            "values": dict(upcoming.values),
            "milestones": self.milestones,
            NUM_WORKERS: num_workers,
        }

    def sizes(self, *, begun: bool) -> list[int]:
        """Return the number of workers of each trial that has them, or that waits for them."""
        found = self.trials.values()
        return [running.num_workers for running in found if running.begun is begun]

    def oversized(self) -> list[str]:
        """Return the trials that wait for more workers than are left, if fewer would be enough."""
        begun = self.sizes(begun=True)
        waiting = {name: each.num_workers for name, each in self.trials.items() if not each.begun}
        found = []
        for name, size in waiting.items():
            others = [workers for other, workers in waiting.items() if other != name]
            if self.slots.oversized(size, begun, others):
                found.append(name)
        return found

    def withdraw(self, trial_id: str) -> None:
        """Withdraw a trial that waits for workers; its settings are handed out again."""
        running = self.trials.pop(trial_id)
        reason = f"there are no {running.num_workers} workers for it"
        self.ladder.interrupt(running.assignment, Cause.ROOM, {}, reason)

    @property
    def num_begun(self) -> int:
        """Number of trials that have a worker."""
        return sum(running.begun for running in self.trials.values())

    @property
    def gave_up(self) -> bool:
        """Whether so many trials failed that the search gives up."""
        return self.ladder.num_failed >= self.ladder.config.max_failures

    def on_report(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Pass the epochs of a result to the ladder; return whether to stop the trial."""
        running = self.trials[trial_id]
        if note := result.get("note"):
            self.say(note)
        for metrics in result.get("history", []):
            running.metrics = metrics
            running.pruned = self.ladder.report(running.assignment, metrics)
        return running.pruned

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the ladder: PRUNED if stopped, COMPLETE after the last epoch, otherwise FAIL."""
        running = self.trials.pop(trial_id, None)
        if running is None:  # withdrawn
            return
        with self.keeping_own_errors():
            if error:
                self._on_error(running, self.errors.pop(trial_id))
            else:
                self._on_end(running)

    def _on_end(self, running: Running) -> None:
        if running.pruned:
            state = TrialState.PRUNED
        elif running.metrics.get("epoch") == self.ladder.experiment.train.num_epochs:
            state = TrialState.COMPLETE
        else:
            # Without an error, its study would wait for it forever.
            planned = self.ladder.experiment.train.num_epochs
            text = f"it ended after {running.num_epochs} of {planned} epochs"
            self._on_error(running, TrialError(text, None))
            return
        self.ladder.finish(running.assignment, state, running.metrics)

    def leave(self) -> None:
        """Tell the ladder that the running trials are abandoned."""
        for running in self.trials.values():
            self.ladder.leave(running.assignment, running.metrics)

    def _on_error(self, running: Running, error: TrialError) -> None:
        num_failed = self.ladder.num_failed
        if error.cause is None:
            self.ladder.finish(running.assignment, TrialState.FAIL, running.metrics, error.sentence)
        else:
            self.ladder.interrupt(running.assignment, error.cause, running.metrics, error.sentence)
        if self.ladder.num_failed > num_failed and not self.first_error:
            self.first_error = error.text if error.cause is None else error.sentence

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the journal holds the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, as in `save`."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Do nothing, as in `save`."""
