"""The ladder search: one Optuna study per (method, size), with ask and tell, and without Ray.

Only the journal holds state. Every start continues it: trials that were running when the last
process died are told FAIL (`interrupted`) and run again from their last checkpoint (`retry_of`, see
`retries.py`), so the number of trials is exact. Early stopping reads its values from the journal,
so it survives a restart as well. It compares trials within one study, that is, of one method at one
capacity.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from krscale.config import Experiment
from krscale.metrics import VAL_ACCURACY
from krscale.redaction import redact
from krscale.search.space.space import SearchSpace
from krscale.search.studies.budgets import Budget
from krscale.search.studies.checkpoints import checkpoint_path, forget, kept_history, sweep
from krscale.search.studies.journal import Journal
from krscale.search.studies.objectives import trial_values
from krscale.search.studies.opening import TRAINING, StudyOpener, num_trainings, trial_name
from krscale.search.studies.pruners import STOPPED, Stop, find_stop
from krscale.search.studies.retries import (
    ALONE,
    CONTINUES,
    LAST_EPOCH,
    SEED,
    Cause,
    deserves_retry,
    epochs_beyond,
    epochs_reached,
    last_epoch,
    run_again,
    why_given_up,
)
from krscale.search.studies.samplers import is_used_up, num_startup
from krscale.search.studies.scheduling import StudyScheduler
from krscale.search.studies.size_resolver import FixedSizeResolver, SizeResolver
from krscale.search.studies.study import FinalStudy, Study, TuningStudy
from krscale.search.studies.transfer import transfer
from krscale.search.studies.trial_spec import Assignment, FinalKey, Listener, StudyKey, TuningKey
from krscale.setup.sizes import StudentSize
from krscale.storage.run_mirror import send

MAX_FORBIDDEN = 50
"""Number of consecutive suggestions that break a limit after which a study is given up."""


class Next(Enum):
    """Results of `Ladder.next` if there is no trial to start."""

    WAIT = "a running trial must end first"
    DONE = "every study is complete"


class Ladder:
    """All studies of a search, with equal budgets; decides which trial comes next.

    Args:
        journal: File of Optuna's journal; continued if it exists.
        experiment: The search's settings; its own values are each study's first trial.
        space: The search space, with the distributions of every method.
        sizes: The student sizes.
        listeners: Called for every event, in order.
        size_resolver: Computes how large a student is and whether it is allowed; None uses every
            size unchanged and allows it.
        clock: Returns the time in seconds; replaced in tests.
    """

    def __init__(
        self,
        journal: Path,
        experiment: Experiment,
        space: SearchSpace,
        sizes: Iterable[StudentSize],
        listeners: Iterable[Listener] = (),
        *,
        size_resolver: SizeResolver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.experiment, self.config, self.space = experiment, experiment.search, space
        self.sizes = {r.capacity: r for r in sorted(sizes, key=lambda r: r.num_parameters)}
        self.size_resolver = size_resolver or FixedSizeResolver(self.sizes)
        self.listeners = tuple(listeners)
        self.running: dict[str, tuple[Assignment, Trial]] = {}
        self.parked: list[tuple[Assignment, Trial]] = []
        self.stops: dict[str, Stop] = {}
        self.recalled: dict[str, int] = {}  # epochs of earlier attempts, by trial
        self.num_failed = 0
        self.run_path = journal.parent
        self.journal = Journal(journal)
        opener = StudyOpener(self.journal.storage, experiment, space)
        self.tuning: dict[TuningKey, TuningStudy] = {}
        self.finals: dict[FinalKey, FinalStudy] = {}
        for key in self._keys():
            self.tuning[key] = opener.open_tuning(key)
            self._recover(self.tuning[key])
        for key, tuning in self.tuning.items():
            self.finals[key.finals] = opener.open_finals(tuning)
            self._recover(self.finals[key.finals])
        self.num_trainings = num_trainings(self.journal.storage)
        tuned = [study.counted() for study in self.tuning.values()]
        if any(study.is_new for study in self.tuning.values()):  # the space has changed
            for study in self.tuning.values():
                study.take_back_spent()
        spent = max(study.spent_seconds for study in self.tuning.values())
        past = (trial for trials in tuned for trial in trials)
        self.budget = Budget(self.config, past, clock, spent)
        for study in self.tuning.values():
            for trial in (*study.waiting(), *study.counted()):
                self.budget.count_epochs(epochs_beyond(study.optuna, trial))
        self.scheduler = StudyScheduler(experiment, self.tuning, self.finals, self.budget)
        sweep(self.run_path, {checkpoint_path(self.run_path, n) for n in self._continued()})

    @property
    def studies(self) -> dict[StudyKey, Study]:
        """All studies: the tuning studies, then the final trainings."""
        return dict([*self.tuning.items(), *self.finals.items()])

    @property
    def optuna_studies(self) -> dict[StudyKey, optuna.Study]:
        """Optuna's studies."""
        return {key: study.optuna for key, study in self.studies.items()}

    def next(self) -> Assignment | Next:
        """Hand out the next trial: from the study furthest behind, larger students first.

        Large students go first to keep the end of the search short. Even progress lets every study
        learn from its own trials. A study that waits for its last trials does not delay others.
        Trials that must run alone come last, one at a time.
        """
        if any(assignment.alone for assignment, _ in self.running.values()):
            return Next.WAIT
        while study := self.scheduler.furthest_behind():
            asked = self._ask(study)
            if asked and not asked[0].alone:
                return self._hand_out(*asked)
            self.parked += [asked] if asked else []
        if self.parked and len(self.running) == 0:
            return self._hand_out(*self.parked.pop(0))
        return Next.WAIT if self.running or self.parked else Next.DONE

    def report(self, assignment: Assignment, metrics: Mapping[str, float]) -> bool:
        """Record one epoch; return whether the trial should stop now."""
        _, trial = self.running[assignment.name]
        study = self._study(assignment.key)
        single = self._record(assignment, trial, metrics)
        if isinstance(study, FinalStudy):
            return False
        if int(metrics["epoch"]) > self.recalled[assignment.name]:
            self.budget.count_epochs(1)
        stop = find_stop(trial, self.experiment.train.num_epochs) if single else None
        if stop:
            self.stops[assignment.name] = stop
        return stop is not None

    def finish(
        self,
        assignment: Assignment,
        state: TrialState,
        metrics: Mapping[str, float],
        error: str = "",
    ) -> None:
        """Tell the study how a trial ended, with its last metrics.

        If it failed, `error` is the reason. If it was stopped, the reason is known since its last
        report.
        """
        study, (_, trial) = self._study(assignment.key), self.running.pop(assignment.name)
        stop = self.stops.pop(assignment.name, None)
        reason = stop.text if stop and state is TrialState.PRUNED else error
        for name, value in metrics.items():
            trial.set_user_attr(name, value)
        if reason:
            trial.set_user_attr(STOPPED if state is TrialState.PRUNED else "error", redact(reason))
        # The journal is written last: after a crash in between, the trial is still RUNNING there,
        # and the next start informs all listeners. If it were first, they would miss the end.
        for listener in self.listeners:
            listener.on_end(assignment, state, metrics, reason)
        complete = state is TrialState.COMPLETE
        objectives = study.objectives(self.config)
        values = trial_values(objectives, assignment, metrics) if complete else None
        study.optuna.tell(trial, values, state=state)
        self.journal.sync()
        study.num_running -= 1
        study.recount()
        if isinstance(assignment.key, TuningKey):
            self.finals[assignment.key.finals].recount()  # the winner may have changed
        forget(self.run_path, assignment.name, assignment.continues)
        self.num_failed += state is TrialState.FAIL
        if self.complete:
            sweep(self.run_path, ())

    def interrupt(
        self, assignment: Assignment, cause: Cause, metrics: Mapping[str, float], error: str
    ) -> None:
        """Run an interrupted trial again if its cause and its past allow it; otherwise it is FAIL.

        Args:
            assignment: The trial.
            cause: What interrupted it.
            metrics: The trial's last metrics, empty before its first epoch.
            error: The reason, in a sentence.
        """
        _, trial = self.running[assignment.name]
        if not deserves_retry(trial, cause, self.config.max_retries):
            self._catch_up(self._study(assignment.key), assignment)
            reason = f"{why_given_up(trial, cause)}: {error}"
            self.finish(assignment, TrialState.FAIL, metrics, reason)
            return
        del self.running[assignment.name]
        study = self._study(assignment.key)
        study.num_running -= 1
        counted = max(int(metrics.get("epoch", 0)), epochs_reached(study.optuna, trial.number))
        self._run_again(study, assignment, cause)
        if isinstance(study, TuningStudy):  # unrecorded epochs will be counted again
            self.budget.count_epochs(epochs_reached(study.optuna, trial.number) - counted)

    def leave(self, assignment: Assignment, metrics: Mapping[str, float]) -> None:
        """Tell listeners that the search stops while a trial runs, so that none shows it running.

        The journal still has the trial RUNNING, so the next start runs it again.

        Args:
            assignment: The trial.
            metrics: The trial's last metrics, empty before its first epoch.
        """
        for listener in self.listeners:
            listener.on_end(assignment, TrialState.FAIL, metrics, Cause.SEARCH.text)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to run."""
        return not self.running and not self.parked and self.scheduler.furthest_behind() is None

    def planned(self, key: StudyKey) -> int:
        """Return the planned number of trials of a study."""
        return self._study(key).planned(self.config)

    def ended_by(self, key: TuningKey) -> str:
        """Return why a tuning study starts no more trials; empty if it starts more."""
        ending = self.scheduler.ending(self.tuning[key])
        return ending.text if ending else ""

    def counted(self, key: StudyKey) -> list[FrozenTrial]:
        """Return ended trials that count towards the plan: all but the interrupted ones."""
        return self._study(key).counted()

    def winner(self, method: str, capacity: str) -> FrozenTrial | None:
        """Return the best complete trial by validation accuracy, then `merit`; None without one."""
        return self.tuning[TuningKey(method, capacity)].winner()

    def trial_name(self, key: StudyKey, number: int) -> str:
        """Return the name of a trial, as in `Assignment.name`."""
        return trial_name(self._study(key).optuna, key, number)

    def assignment(self, key: StudyKey, trial: Trial | FrozenTrial) -> Assignment:
        """Return the assignment of a trial, running or ended, as it is handed out."""
        attrs, values = trial.user_attrs, dict(trial.params)
        continues = attrs.get(CONTINUES)
        return Assignment(
            key=key,
            number=trial.number,
            name=self.trial_name(key, trial.number),
            size=self.size_resolver.size(key.capacity, values),
            values=values,
            seed=int(attrs.get(SEED, self.experiment.train.seed)),
            continues="" if continues is None else self.trial_name(key, int(continues)),
            alone=bool(attrs.get(ALONE, False)),
            latency_ms=self._latency_ms(key, values),
        )

    def _keys(self) -> list[TuningKey]:
        return [
            TuningKey(method, capacity)
            for capacity in reversed(self.sizes)
            for method in self.config.methods
        ]

    def _study(self, key: StudyKey) -> Study:
        """Return one study; `studies` would build a dictionary of all studies for it."""
        return self.tuning[key] if isinstance(key, TuningKey) else self.finals[cast(FinalKey, key)]

    def _ask(self, study: Study) -> tuple[Assignment, Trial] | None:
        """Ask a study for its next trial; None if it finds no allowed student."""
        study.require_room(self.config)
        if isinstance(study, TuningStudy):
            return self._ask_tuning(study)
        trial = study.ask()  # enqueued; its student is allowed, since it was trained
        self.num_trainings += 1
        trial.set_user_attr(TRAINING, self.num_trainings)
        self.space.suggest(study.key.method, trial)
        return self._start(study, trial)

    def _ask_tuning(self, study: TuningStudy) -> tuple[Assignment, Trial] | None:
        key, planned = TuningKey(study.key.method, study.key.capacity), study.planned(self.config)
        if self.config.transfer and self.config.sampler != "grid":
            transfer(key, self.tuning, list(self.sizes), planned, num_startup(self.config))
        study.reopen()
        for _ in range(MAX_FORBIDDEN):
            if not study.num_waiting and is_used_up(study.optuna):
                why = "every other point of the grid breaks a limit of the student's size"
                study.give_up(why, planned)
                return None
            trial = study.ask()
            values = self.space.suggest(key.method, trial)
            excess = self.size_resolver.excess(key.capacity, values)
            if not excess:
                return self._start(study, trial)
            study.forbid(trial, excess)
        study.give_up("nearly every suggestion broke a limit of the student's size", planned)
        return None

    def _start(self, study: Study, trial: Trial) -> tuple[Assignment, Trial]:
        study.num_running += 1
        study.recount()
        return self.assignment(study.key, trial), trial

    def _hand_out(self, assignment: Assignment, trial: Trial) -> Assignment:
        self.running[assignment.name] = assignment, trial
        study = self._study(assignment.key).optuna
        self.recalled[assignment.name] = epochs_reached(study, trial.number)
        for listener in self.listeners:
            listener.on_start(assignment)
        return assignment

    def _latency_ms(self, key: StudyKey, values: Mapping[str, Any]) -> float | None:
        wanted = "latency_ms" in self.config.objectives
        return self.size_resolver.latency_ms(key.capacity, values) if wanted else None

    def _recover(self, study: Study) -> None:
        """Run trials again that were running when the last process died."""
        for orphan in study.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            assignment = self.assignment(study.key, Trial(study.optuna, orphan._trial_id))
            for listener in self.listeners:
                listener.on_start(assignment)
            self._run_again(study, assignment, Cause.SEARCH)

    def _run_again(self, study: Study, assignment: Assignment, cause: Cause) -> None:
        # Listeners are called before the journal is written, as in `finish`.
        reached = {"epoch": float(self._catch_up(study, assignment))}
        for listener in self.listeners:
            listener.on_end(assignment, TrialState.FAIL, reached, cause.text)
        own = checkpoint_path(self.run_path, assignment.name)
        run_again(study.optuna, assignment.number, cause, has_checkpoint=own.exists())
        send(self.run_path)  # the next worker may be on another machine
        study.recount()

    def _record(self, assignment: Assignment, trial: Trial, metrics: Mapping[str, float]) -> bool:
        """Report an epoch; return whether Optuna may prune the trial: with one objective alone.

        With several, Optuna keeps no epochs, so only the number of the last one is kept.
        """
        for listener in self.listeners:
            listener.on_epoch(assignment, metrics)
        single = len(self._study(assignment.key).objectives(self.config)) == 1
        if single:
            trial.report(metrics[VAL_ACCURACY], int(metrics["epoch"]))
        else:
            before = int(trial.user_attrs.get(LAST_EPOCH, 0))
            trial.set_user_attr(LAST_EPOCH, max(before, int(metrics["epoch"])))
        return single

    def _catch_up(self, study: Study, assignment: Assignment) -> int:
        """Record the epochs that a trial's worker kept in its checkpoint but did not report.

        A worker first writes its checkpoint and then reports. A listener that already has an epoch
        records the same values again.

        Returns:
            The last known epoch of the trial; 0 without any.
        """
        frozen = study.optuna.get_trials(deepcopy=False)[assignment.number]
        recorded, trial = frozen.intermediate_values, Trial(study.optuna, frozen._trial_id)
        reached = last_epoch(frozen)
        for metrics in kept_history(checkpoint_path(self.run_path, assignment.name)):
            if int(metrics["epoch"]) not in recorded:
                self._record(assignment, trial, metrics)
            reached = max(reached, int(metrics["epoch"]))
        return reached

    def _continued(self) -> list[str]:
        """Return the names of interrupted trials from which a waiting trial continues."""
        return [
            self.trial_name(key, int(trial.user_attrs[CONTINUES]))
            for key, study in self.studies.items()
            for trial in study.waiting()
            if CONTINUES in trial.user_attrs
        ]
