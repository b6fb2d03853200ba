"""The ladder search: one Optuna study per (method, rung), asked and told by us. No Ray here.

The journal is the only truth. Every start continues it: trials that were running when the last
process died are told FAIL (`interrupted`), run again from their last checkpoint (`retry_of`, see
`retries.py`), and the count of trials comes out exact. Early stopping reads the values in the
journal, so its memory survives a restart as well, and it sees one study, hence one method at one
capacity, at a time.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from krscale.config import Experiment
from krscale.rungs import Rung
from krscale.search.assignment import Assignment, Listener, StudyKey
from krscale.search.journal import Journal
from krscale.search.retries import (
    ALONE,
    CONTINUES,
    SEED,
    Cause,
    deserves_retry,
    run_again,
    was_interrupted,
)
from krscale.search.sampling import make_pruner, make_sampler
from krscale.search.space import SearchSpace, defaults_within
from krscale.search.unfinished import sweep, unfinished_path

FINAL_SEED_OFFSET = 1000  # far from the seed that tuning used, so that finals are fresh


class Next(Enum):
    """What `Ladder.next` says when there is no trial to start."""

    WAIT = "a running trial must end first"
    DONE = "every study is complete"


class Ladder:
    """All studies of a search, with equal budgets, and which trial comes next.

    Args:
        journal: File of Optuna's journal; continued when it exists.
        experiment: The search's settings; its own values are each study's first trial.
        space: Distributions of every method.
        rungs: The student sizes.
        listeners: Told of every event, in order.
    """

    def __init__(
        self,
        journal: Path,
        experiment: Experiment,
        space: SearchSpace,
        rungs: Iterable[Rung],
        listeners: Iterable[Listener] = (),
    ) -> None:
        self.experiment = experiment
        self.config = experiment.search
        self.space = space
        self.rungs = {rung.capacity: rung for rung in rungs}
        self.listeners = tuple(listeners)
        self.running: dict[tuple[StudyKey, int], tuple[Assignment, Trial]] = {}
        self.num_failed = 0
        self.run_path = journal.parent
        self.journal = Journal(journal)
        self.studies = {key: self._open(key) for key in self._keys()}
        for key in self.studies:
            # A crash may have come between a study's last trial and its finals.
            if not key.final and self._remaining(key) <= 0:
                self._plan_finals(key)
        sweep(self.run_path, self._needed_checkpoints())

    def next(self) -> Assignment | Next:
        """Hand out the next trial: the study furthest behind first, larger students before smaller.

        Large students first keeps the tail of the search short; even progress lets every study
        learn from its own trials.
        """
        waiting = [key for key in self.studies if self._may_start(key)]
        if not waiting:
            return Next.WAIT if self.running else Next.DONE
        order = {key: position for position, key in enumerate(self.studies)}
        key = min(waiting, key=lambda k: (self._started(k) / self.planned(k), order[k]))
        return self._ask(key)

    def report(self, assignment: Assignment, metrics: Mapping[str, float]) -> bool:
        """Record one epoch; return whether the trial should stop now."""
        for listener in self.listeners:
            listener.on_epoch(assignment, metrics)
        _, trial = self.running[assignment.key, assignment.number]
        trial.report(metrics["val/accuracy"], int(metrics["epoch"]))
        return not assignment.key.final and trial.should_prune()

    def finish(
        self,
        assignment: Assignment,
        state: TrialState,
        metrics: Mapping[str, float],
        error: str = "",
    ) -> None:
        """Tell the study how a trial ended, with its last metrics and, if it failed, why."""
        _, trial = self.running.pop((assignment.key, assignment.number))
        for name, value in metrics.items():
            trial.set_user_attr(name, value)
        if error:
            trial.set_user_attr("error", error)
        # The journal hears last: after a crash in between the trial is still RUNNING there, and the
        # next start tells everyone how it ended. Told first, the others would never hear of it.
        for listener in self.listeners:
            listener.on_end(assignment, state, metrics, error)
        objective = metrics["val/accuracy"] if state is TrialState.COMPLETE else None
        self.studies[assignment.key].tell(trial, objective, state=state)
        self.journal.sync()
        self._forget_checkpoints(assignment)
        self.num_failed += state is TrialState.FAIL
        if not assignment.key.final and self._remaining(assignment.key) == 0:
            self._plan_finals(assignment.key)
        if self.complete:
            sweep(self.run_path, ())

    def interrupt(
        self, assignment: Assignment, cause: Cause, metrics: Mapping[str, float], error: str
    ) -> None:
        """A trial was cut short: run it again if its cause and its past allow, else it is FAIL.

        Args:
            assignment: The trial.
            cause: What cut it short.
            metrics: Its last ones, empty before its first epoch.
            error: What Ray said of it.
        """
        _, trial = self.running[assignment.key, assignment.number]
        if not deserves_retry(trial, cause, self.config.max_retries):
            self.finish(assignment, TrialState.FAIL, metrics, error)
            return
        del self.running[assignment.key, assignment.number]
        self._run_again(self.studies[assignment.key], assignment, cause)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to run."""
        return not self.running and not any(self._may_start(key) for key in self.studies)

    def planned(self, key: StudyKey) -> int:
        """Number of trials a study is meant to have."""
        return self.config.num_final_seeds if key.final else self.config.trials_per_rung

    def counted(self, key: StudyKey) -> list[FrozenTrial]:
        """Ended trials that count towards the plan: all but the interrupted ones."""
        ended = self.studies[key].get_trials(
            deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        )
        return [trial for trial in ended if not was_interrupted(trial)]

    def finals(self, method: str, capacity: str) -> list[FrozenTrial]:
        """Complete final trainings of a study's winner, in the order of their seeds."""
        ended = self.counted(StudyKey(method, capacity, final=True))
        complete = [trial for trial in ended if trial.state is TrialState.COMPLETE]
        return sorted(complete, key=lambda trial: int(trial.user_attrs[SEED]))

    def winner(self, method: str, capacity: str) -> FrozenTrial | None:
        """Best complete trial by validation accuracy, then by validation loss; None if none."""
        study = self.studies[StudyKey(method, capacity)]
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if not complete:
            return None
        return max(complete, key=lambda t: (t.value, -t.user_attrs.get("val/loss", 0.0)))

    def _keys(self) -> list[StudyKey]:
        widest_first = sorted(self.rungs.values(), key=lambda rung: -rung.num_parameters)
        return [
            StudyKey(method, rung.capacity, final)
            for final in (False, True)
            for rung in widest_first
            for method in self.config.methods
        ]

    def _open(self, key: StudyKey) -> optuna.Study:
        study = optuna.create_study(
            storage=self.journal.storage,
            study_name=key.name,
            direction="maximize",
            load_if_exists=True,
        )
        study.pruner = make_pruner(self.config, self.experiment.train.num_epochs)
        # Restarts must not draw the first start's random numbers again.
        salt = f"{self.config.seed}/{key.name}/{len(study.get_trials(deepcopy=False))}"
        study.sampler = make_sampler(self.config, zlib.crc32(salt.encode()))
        self._recover(key, study)
        if not key.final and not study.get_trials(deepcopy=False):
            values = defaults_within(self.experiment, self.space.by_method[key.method])
            study.enqueue_trial(values)
        return study

    def _recover(self, key: StudyKey, study: optuna.Study) -> None:
        """Run trials again that died with the last process."""
        for orphan in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            assignment = self._assignment(key, Trial(study, orphan._trial_id))
            for listener in self.listeners:
                listener.on_start(assignment)
            self._run_again(study, assignment, Cause.SEARCH)

    def _run_again(self, study: optuna.Study, assignment: Assignment, cause: Cause) -> None:
        # Listeners hear before the journal, as in `finish`.
        for listener in self.listeners:
            listener.on_end(assignment, TrialState.FAIL, {}, cause.text)
        own = unfinished_path(self.run_path, assignment.key, assignment.number)
        run_again(study, assignment.number, cause, has_checkpoint=own.exists())

    def _ask(self, key: StudyKey) -> Assignment:
        study = self.studies[key]
        trial = study.ask()
        self.space.suggest(key.method, trial)
        assignment = self._assignment(key, trial)
        self.running[key, trial.number] = assignment, trial
        for listener in self.listeners:
            listener.on_start(assignment)
        return assignment

    def _assignment(self, key: StudyKey, trial: Trial) -> Assignment:
        attrs = trial.user_attrs
        return Assignment(
            key=key,
            number=trial.number,
            width=self.rungs[key.capacity].width,
            values=dict(trial.params),
            seed=int(attrs.get(SEED, self.experiment.train.seed)),
            continues=attrs.get(CONTINUES),
            alone=bool(attrs.get(ALONE, False)),
        )

    def _started(self, key: StudyKey) -> int:
        return len(self.counted(key)) + sum(running_key == key for running_key, _ in self.running)

    def _remaining(self, key: StudyKey) -> int:
        return self.planned(key) - len(self.counted(key))

    def _may_start(self, key: StudyKey) -> bool:
        if self._started(key) >= self.planned(key):
            return False
        if not key.final:
            return True
        # A final needs a seed that only an enqueued trial carries.
        return bool(self.studies[key].get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def _plan_finals(self, key: StudyKey) -> None:
        """Enqueue the winner of a finished study with fresh seeds; safe to call again."""
        winner = self.winner(key.method, key.capacity)
        final = StudyKey(key.method, key.capacity, final=True)
        study = self.studies[final]
        taken = {
            trial.user_attrs.get(SEED)
            for trial in study.get_trials(deepcopy=False)
            if not was_interrupted(trial)
        }
        if winner is None:
            return
        for position in range(self.planned(final)):
            seed = self.experiment.train.seed + FINAL_SEED_OFFSET + position
            if seed not in taken:
                study.enqueue_trial(winner.params, user_attrs={SEED: seed})

    def _needed_checkpoints(self) -> set[Path]:
        return {
            unfinished_path(self.run_path, key, int(trial.user_attrs[CONTINUES]))
            for key, study in self.studies.items()
            for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            if CONTINUES in trial.user_attrs
        }

    def _forget_checkpoints(self, assignment: Assignment) -> None:
        for number in (assignment.number, assignment.continues):
            if number is not None:
                folder = unfinished_path(self.run_path, assignment.key, number)
                shutil.rmtree(folder, ignore_errors=True)
