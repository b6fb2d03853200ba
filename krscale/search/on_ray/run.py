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
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from krscale.config.training import NO_CHANNELS_LAST_ON_CPU
from krscale.errors import StorageError, UserError
from krscale.models.given import given
from krscale.search.on_ray.forwarding import no_secrets_forwarded
from krscale.search.on_ray.group_resources import has_gpus, require_workers
from krscale.search.on_ray.lost_workers import end_only_their_trials
from krscale.search.on_ray.oversized_trials import OversizedTrials
from krscale.search.on_ray.searcher import NUM_WORKERS, LadderSearcher
from krscale.search.on_ray.slots import Slots
from krscale.search.on_ray.stalled_trials import StalledTrials
from krscale.search.on_ray.trial import StudentTrial
from krscale.search.on_ray.trial_error import TrialError
from krscale.search.on_ray.waiting_trials import WaitingTrials
from krscale.search.space.distributions import contains
from krscale.search.studies.ladder import Ladder
from krscale.search.studies.pruners import milestones
from krscale.setup.network_builder import student_models
from krscale.setup.prepare import Prepared
from krscale.storage_errors import storage_error

NO_LIMIT = 1_000_000
"""Of Tune's own; without a number it keeps no more than one trial waiting (see `slots.py`)."""


class LadderScheduler(FIFOScheduler):
    """Runs trials as they come and stops one when its study says so."""

    def __init__(
        self,
        searcher: LadderSearcher,
        stalled: StalledTrials,
        *watching: WaitingTrials | OversizedTrials,
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
    require_workers(experiment, resources)
    searched = [fields.get("train.channels_last") for fields in ladder.space.by_method.values()]
    may_be = experiment.train.channels_last or any(one and contains(one, True) for one in searched)
    if may_be and not has_gpus(experiment):
        raise UserError(
            f"train.channels_last: {NO_CHANNELS_LAST_ON_CPU}; the cluster has no GPU, so trials "
            f"would train on CPUs."
        )
    searcher = LadderSearcher(
        ladder,
        milestones(config, experiment.train.num_epochs),
        Slots(resources, experiment.train.num_workers, experiment.train.most_workers),
        say,
    )
    tuner = _tuner(searcher, prepared, resources, say)
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
    _refuse_failures(searcher)


def _tuner(
    searcher: LadderSearcher,
    prepared: Prepared,
    resources: Mapping[str, float],
    say: Callable[[str], None],
) -> tune.Tuner:
    """Return Ray Tune, set up so that the ladder alone decides what runs, stops and counts."""
    ladder = searcher.ladder
    experiment, num_workers = ladder.experiment, ladder.experiment.train.num_workers
    stalled = StalledTrials(ladder, searcher.trials.items)
    waiting = WaitingTrials(resources, num_workers, lambda: searcher.num_begun > 0, say)
    oversized = OversizedTrials(searcher)
    trainable = tune.with_parameters(
        StudentTrial,
        experiment=experiment.without_credentials(),
        prepared=prepared,
        given=given(student_models(experiment)),
    )
    return tune.Tuner(
        tune.with_resources(
            trainable,
            lambda trial: PlacementGroupFactory(
                [dict(resources)] * trial.get(NUM_WORKERS, num_workers)
            ),
        ),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=LadderScheduler(searcher, stalled, waiting, oversized),
            num_samples=-1,
            reuse_actors=True,
            max_concurrent_trials=NO_LIMIT,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(experiment.run_path),
            verbose=0,
            callbacks=[_Starts(searcher), stalled, waiting, oversized],
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(
                checkpoint_frequency=0, checkpoint_at_end=False
            ),
        ),
    )


def _refuse_failures(searcher: LadderSearcher) -> None:
    ladder = searcher.ladder
    if searcher.gave_up:
        raise UserError(
            f"search: {ladder.num_failed} trials failed (search.max_failures = "
            f"{ladder.config.max_failures}). The first error was:\n{searcher.first_error}"
        )
    if searcher.first_error and not any(study.winner() for study in ladder.tuning.values()):
        raise UserError(f"search: every trial failed. The first error was:\n{searcher.first_error}")
