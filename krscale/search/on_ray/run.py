"""The search on Ray: one Tuner for the whole ladder, with trials from the ladder's own studies.

Only this folder imports ray.tune. `LadderSearcher` hands out the trials of `Ladder.next`;
`LadderScheduler` asks the ladder whether a trial should stop. Tune manages actors, resources and
failures; the ladder makes every decision and records it in the journal (see `ladder.py`). A new
start makes a new Tuner: Tune's own state is never restored.
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

from krscale.cluster.versions import own_versions
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
"""Value for Tune's own limit; without it, Tune keeps at most one trial waiting (`slots.py`)."""


class LadderScheduler(FIFOScheduler):
    """Runs trials in the order they are handed out and stops a trial if its study decides so."""

    def __init__(
        self,
        searcher: LadderSearcher,
        stalled: StalledTrials,
        *watching: WaitingTrials | OversizedTrials,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.searcher, self.stalled, self.watching = searcher, stalled, watching

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Prepare the controller; called before the trial has a worker."""
        for watch in (self.stalled, *self.watching):
            watch.controller = tune_controller
        end_only_their_trials(tune_controller._actor_manager)

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        """Choose none: Tune then gives free workers to trials in the order they were handed out.

        A chosen trial would get the worker that has just become free, even if its own worker is
        already starting, which Tune would then discard (see `slots.py`).
        """
        return None

    def on_trial_result(
        self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]
    ) -> str:
        """Report the epochs of this step; return STOP for a pruned trial."""
        stop = self.searcher.on_report(trial.trial_id, result)
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE

    def on_trial_complete(
        self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]
    ) -> None:
        """Report the epochs of a trial's last step, which Tune sends only to this method.

        Tune also calls it for a trial that we stopped, with the step that was already reported.
        """
        running = self.searcher.trials[trial.trial_id]
        if not running.pruned:
            with self.searcher.keeping_own_errors():
                self.searcher.on_report(trial.trial_id, result)
            running.pruned = False  # the trial has run to its end, so it was not stopped

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Keep the error for the study, the tracker and the final message.

        Raises:
            Exception: If the error is not the trial's, but the driver's own or one of its storage.
                It ends Tune; in the journal the trial stays RUNNING.
        """
        if self.searcher.own_error is not None:
            raise self.searcher.own_error
        if trial in tune_controller._staged_trials:
            # It failed while Tune assigned it a worker that had trained others. Tune would leave it
            # staged and keep one more idle worker, for which trials of other sizes would wait.
            tune_controller._unstage_trial_with_resources(trial)
        if reason := self.stalled.ended.pop(trial.trial_id, ""):
            self.searcher.errors[trial.trial_id] = TrialError(reason, None)
            return
        path = trial.error_file
        text = Path(path).read_text(encoding="utf-8") if path else "no error text"
        storage = Path(self.searcher.ladder.experiment.storage_path)
        error = TrialError.of(_exception(trial), text, storage)
        if error.storage:
            raise error.storage
        self.searcher.errors[trial.trial_id] = error


class _Starts(tune.Callback):
    """Records which trials have a worker."""

    def __init__(self, searcher: LadderSearcher) -> None:
        self.searcher = searcher

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Mark a trial as begun; Tune also calls this for a worker that is reused."""
        self.searcher.trials[trial.trial_id].begun = True


def _exception(trial: TuneTrial) -> BaseException | None:
    """Return the exception of a trial that Tune has just written, in this process.

    `Trial.get_pickled_error` reads the run's storage, to which Tune copies it only later.
    """
    path = trial.pickled_error_file
    found: BaseException | None = cloudpickle.loads(Path(path).read_bytes()) if path else None
    return found


def require_possible(ladder: Ladder, resources: Mapping[str, float]) -> None:
    """Refuse a search whose trials the connected Ray cannot run.

    Raises:
        UserError: If the cluster can never provide what a trial needs, or has no GPU where a
            setting needs one.
    """
    experiment = ladder.experiment
    require_workers(experiment, resources)
    searched = [fields.get("train.channels_last") for fields in ladder.space.by_method.values()]
    may_be = experiment.train.channels_last or any(one and contains(one, True) for one in searched)
    if may_be and not has_gpus(experiment):
        raise UserError(
            f"train.channels_last: {NO_CHANNELS_LAST_ON_CPU}; the cluster has no GPU, so trials "
            f"would train on CPUs."
        )


def run_search(
    ladder: Ladder,
    prepared: Prepared,
    resources: Mapping[str, float],
    say: Callable[[str], None] = print,
) -> None:
    """Run every trial that the journal does not have yet, on the connected Ray.

    Call `require_possible` first.

    Args:
        ladder: The studies; they are complete afterwards.
        prepared: Data, teacher and store, on storage that all workers can read.
        resources: Resources that Ray reserves for each worker of a trial (see `gpu_packing.py`).
        say: Prints a line for the user.

    Raises:
        UserError: If so many trials failed that the search gave up, with the first error.
    """
    experiment, config = ladder.experiment, ladder.config
    # Listeners show Tune's errors to the user, one line each; Tune need not print them again.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
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
    except BaseException as error:  # above all Ctrl-C
        full = storage_error(error)
        with suppress(OSError, StorageError):  # the next start reports what cannot be reported now
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
    """Return Ray Tune, configured so that only the ladder decides what runs, stops and counts."""
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
        versions=own_versions(),
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
        raise UserError(f"search: no trial finished. The first error was:\n{searcher.first_error}")
