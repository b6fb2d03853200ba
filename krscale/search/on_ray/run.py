"""The search on Ray: one Tuner for the whole ladder, fed by the ladder's own studies.

Only this folder imports ray.tune. `LadderSearcher` hands out what `Ladder.next` says;
`LadderScheduler` asks the ladder whether a trial should stop. Tune keeps actors, resources and
failures; every decision and every record is the journal's (see `ladder.py`). A new start is a new
Tuner: nothing of Tune's own state is ever restored.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from ray import cloudpickle, tune
from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from krscale.config.training import NO_CHANNELS_LAST_ON_CPU
from krscale.errors import StorageError, UserError
from krscale.metrics import VAL_ACCURACY
from krscale.models.given import given
from krscale.search.on_ray.forwarding import no_secrets_forwarded
from krscale.search.on_ray.group_resources import has_gpus, require_workers
from krscale.search.on_ray.lost_workers import end_only_their_trials
from krscale.search.on_ray.slots import Slots
from krscale.search.on_ray.stalled_trials import StalledTrials
from krscale.search.on_ray.taken_back import TakenBack
from krscale.search.on_ray.trial import StudentTrial
from krscale.search.on_ray.trial_error import TrialError
from krscale.search.on_ray.waiting_trials import WaitingTrials
from krscale.search.studies.ladder import Ladder, Next
from krscale.search.studies.pruners import milestones
from krscale.search.studies.retries import Cause
from krscale.search.studies.trial_spec import Assignment
from krscale.setup.network_builder import student_models
from krscale.setup.prepare import Prepared
from krscale.storage_errors import storage_error

NUM_WORKERS = "num_workers"
"""Of a trial, in the config that Tune hands on."""
NO_LIMIT = 1_000_000
"""Of Tune's own; without a number it keeps no more than one trial waiting (see `slots.py`)."""


@dataclass
class _Running:
    assignment: Assignment
    metrics: dict[str, float]
    begun: bool = False  # on a worker; until then it waits for one
    pruned: bool = False
    num_workers: int = 1

    @property
    def name(self) -> str:
        """Of the trial, as in the journal."""
        return self.assignment.name

    @property
    def num_epochs(self) -> int:
        """Reported so far."""
        return int(self.metrics.get("epoch", 0))


class LadderSearcher(Searcher):
    """Tune's view of the ladder: suggests assignments and receives how trials end."""

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
        self.trials: dict[str, _Running] = {}
        self.errors: dict[str, TrialError] = {}  # by trial; from the scheduler, which sees more
        self.first_error = ""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher for `Tuner.restore`, which krscale never calls."""
        return {}

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Say that the limit is kept here: `slots` knows it, and it changes with the cluster."""
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
        self.trials[trial_id] = _Running(upcoming, {}, num_workers=num_workers)
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
        """Return the workers of each trial that has them, or that waits for them."""
        found = self.trials.values()
        return [running.num_workers for running in found if running.begun is begun]

    def too_large(self) -> list[str]:
        """Return the trials that wait for more workers than are left, though fewer would do."""
        begun = self.sizes(begun=True)
        waiting = {name: each.num_workers for name, each in self.trials.items() if not each.begun}
        found = []
        for name, size in waiting.items():
            others = [workers for other, workers in waiting.items() if other != name]
            if self.slots.too_large(size, begun, others):
                found.append(name)
        return found

    def take_back(self, trial_id: str) -> None:
        """Take a trial back that waits for workers; its settings are handed out again."""
        running = self.trials.pop(trial_id)
        reason = f"there are no {running.num_workers} workers for it"
        self.ladder.interrupt(running.assignment, Cause.ROOM, {}, reason)

    @property
    def num_begun(self) -> int:
        """Trials that have a worker."""
        return sum(running.begun for running in self.trials.values())

    @property
    def gave_up(self) -> bool:
        """Whether so many trials failed that going on is pointless."""
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
        """Tell the ladder: PRUNED if we stopped it, COMPLETE if it ran out, FAIL otherwise."""
        running = self.trials.pop(trial_id, None)
        if running is None:  # taken back
            return
        if error:
            self._on_error(running, self.errors.pop(trial_id))
            return
        if running.pruned:
            state = TrialState.PRUNED
        elif running.metrics.get("epoch") == self.ladder.experiment.train.num_epochs:
            state = TrialState.COMPLETE
        else:
            # Tune took the trial away before its end. It stays RUNNING in the journal, so that the
            # next start runs it again; calling it complete would be a lie.
            return
        self.ladder.finish(running.assignment, state, running.metrics)

    def leave(self) -> None:
        """Tell the ladder that nobody waits for the running trials any longer."""
        for running in self.trials.values():
            self.ladder.leave(running.assignment, running.metrics)

    def _on_error(self, running: _Running, error: TrialError) -> None:
        num_failed = self.ladder.num_failed
        if error.cause is None:
            self.ladder.finish(running.assignment, TrialState.FAIL, running.metrics, error.sentence)
        else:
            self.ladder.interrupt(running.assignment, error.cause, running.metrics, error.sentence)
        if self.ladder.num_failed > num_failed and not self.first_error:
            self.first_error = error.text if error.cause is None else error.sentence

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the journal is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """See `save`."""


class LadderScheduler(FIFOScheduler):
    """Runs trials as they come and stops one when its study says so."""

    def __init__(
        self,
        searcher: LadderSearcher,
        stalled: StalledTrials,
        *watching: WaitingTrials | TakenBack,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.searcher, self.stalled, self.watching = searcher, stalled, watching

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Called before the trial has a worker."""
        for watch in (self.stalled, *self.watching):
            watch.controller = tune_controller
        end_only_their_trials(tune_controller._actor_manager)

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        """Name none: Tune then gives free workers to trials in the order they were handed out.

        A trial that is named gets the worker that has just become free, whether or not one of its
        own is starting, which then is thrown away (see `slots.py`).
        """
        return None

    def on_trial_result(
        self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]
    ) -> str:
        """Report the epochs of this step; STOP a pruned trial."""
        stop = self.searcher.on_report(trial.trial_id, result)
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE

    def on_trial_complete(
        self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]
    ) -> None:
        """Report the epochs of a trial's last step, which Tune sends here alone.

        A trial that we stopped comes by as well, with the step that was already reported.
        """
        running = self.searcher.trials[trial.trial_id]
        if not running.pruned:
            self.searcher.on_report(trial.trial_id, result)
            running.pruned = False  # it has run to its end: there is nothing left to stop

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Keep the error for the study, the tracker and the final message."""
        if reason := self.stalled.ended.pop(trial.trial_id, ""):
            self.searcher.errors[trial.trial_id] = TrialError(reason, None)
            return
        path = trial.error_file
        text = Path(path).read_text(encoding="utf-8") if path else "no error text"
        storage = Path(self.searcher.ladder.experiment.storage_path)
        error = TrialError.of(_exception(trial), text, storage)
        if error.storage:
            raise error.storage  # ends Tune; in the journal the trial goes on running
        self.searcher.errors[trial.trial_id] = error


class _Starts(tune.Callback):
    """Notes which trials have a worker."""

    def __init__(self, searcher: LadderSearcher) -> None:
        self.searcher = searcher

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Called for a worker that is used again, too."""
        self.searcher.trials[trial.trial_id].begun = True


def _exception(trial: TuneTrial) -> BaseException | None:
    """Return what Tune has just written down of a trial's error, in this process.

    `Trial.get_pickled_error` looks into the run's storage, where Tune copies it only later.
    """
    path = trial.pickled_error_file
    found: BaseException | None = cloudpickle.loads(Path(path).read_bytes()) if path else None
    return found


def run_search(
    ladder: Ladder,
    prepared: Prepared,
    resources: Mapping[str, float],
    say: Callable[[str], None] = print,
) -> None:
    """Run every trial that the journal still misses, on the connected Ray.

    Args:
        ladder: The studies; complete afterwards.
        prepared: Data, teacher and store, on storage that all workers see.
        resources: What Ray reserves for each worker of a trial (see `gpu_packing.py`).
        say: Takes a line for the user.

    Raises:
        UserError: If the cluster can never give what a trial needs, or so many trials failed that
            the search gave up; quotes the first error.
    """
    experiment, config = ladder.experiment, ladder.config
    # Its errors reach the user through the listeners, one line each, not once more in a frame.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    num_workers, most_workers = experiment.train.num_workers, experiment.train.most_workers
    require_workers(experiment, resources)
    if experiment.train.channels_last and not has_gpus(experiment):
        raise UserError(
            f"train.channels_last: {NO_CHANNELS_LAST_ON_CPU}; the cluster has no GPU, so trials "
            f"would train on CPUs."
        )
    searcher = LadderSearcher(
        ladder,
        milestones(config, experiment.train.num_epochs),
        Slots(resources, num_workers, most_workers),
        say,
    )
    stalled = StalledTrials(ladder, searcher.trials.items)
    waiting = WaitingTrials(resources, num_workers, lambda: searcher.num_begun > 0, say)
    taken_back = TakenBack(searcher)
    trainable = tune.with_parameters(
        StudentTrial,
        experiment=experiment.without_credentials(),
        prepared=prepared,
        given=given(student_models(experiment)),
    )
    tuner = tune.Tuner(
        tune.with_resources(
            trainable,
            lambda trial: PlacementGroupFactory(
                [dict(resources)] * trial.get(NUM_WORKERS, num_workers)
            ),
        ),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=LadderScheduler(searcher, stalled, waiting, taken_back),
            num_samples=-1,
            reuse_actors=True,
            max_concurrent_trials=NO_LIMIT,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(experiment.run_path),
            verbose=0,
            callbacks=[_Starts(searcher), stalled, waiting, taken_back],
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(
                checkpoint_frequency=0, checkpoint_at_end=False
            ),
        ),
    )
    try:
        with no_secrets_forwarded():
            tuner.fit()
    except BaseException as error:  # Ctrl-C and the like above all
        full = storage_error(error)
        with suppress(OSError, StorageError):  # what cannot be told now, the next start tells
            searcher.leave()
        if full:
            raise StorageError(
                f"{experiment.run_path}: the search stopped, and no running trial counts: {full} "
                f"The same command goes on."
            ) from error
        raise
    if searcher.gave_up:
        raise UserError(
            f"search: {ladder.num_failed} trials failed (search.max_failures = "
            f"{config.max_failures}). The first error was:\n{searcher.first_error}"
        )
    if searcher.first_error and not any(study.winner() for study in ladder.tuning.values()):
        raise UserError(f"search: every trial failed. The first error was:\n{searcher.first_error}")
