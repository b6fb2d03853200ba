"""The ladder search: one Optuna study per (method, rung), asked and told by us. No Ray here.

The journal is the only truth. Every start continues it: trials that were running when the last
process died are told FAIL (`interrupted`), their settings are enqueued again (`retry_of`), and the
count of trials comes out exact. Early stopping is Optuna's own asynchronous successive halving on
the values in the journal, so its memory survives a restart as well, and it sees one study, hence
one method at one capacity, at a time.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from krscale.config import Experiment, SearchConfig
from krscale.rungs import Rung
from krscale.search.space import SearchSpace, defaults_within

INTERRUPTED = "interrupted"
RETRY_OF = "retry_of"
SEED = "seed"
FINAL_SEED_OFFSET = 1000  # far from the seed that tuning used, so that finals are fresh


@dataclass(frozen=True)
class StudyKey:
    """Which study: a method at a rung, while tuning or in the final trainings of its winner."""

    method: str
    capacity: str
    final: bool = False

    @property
    def name(self) -> str:
        """Name of the Optuna study, e.g. `kr@1/16` or `kr@1/16 final`."""
        return f"{self.method}@{self.capacity}" + (" final" if self.final else "")

    def trial_name(self, number: int) -> str:
        """Name of a trial of this study, usable as a path."""
        kind = "final" if self.final else "trial"
        return f"{self.method}/{self.capacity.replace('/', '-')}/{kind}-{number}"


@dataclass(frozen=True)
class Assignment:
    """One trial to run: dotted config values for one student."""

    key: StudyKey
    number: int
    width: int
    values: Mapping[str, Any]
    seed: int

    @property
    def name(self) -> str:
        """Stable name of the trial, usable as a path: `kr/1-16/trial-7`, `kr/1-16/final-0`."""
        return self.key.trial_name(self.number)


class Next(Enum):
    """What `Ladder.next` says when there is no trial to start."""

    WAIT = "a running trial must end first"
    DONE = "every study is complete"


class Listener(Protocol):
    """Who is told what happens to trials: progress, tracking."""

    def on_start(self, assignment: Assignment) -> None:
        """A trial was handed out."""

    def on_epoch(self, assignment: Assignment, metrics: Mapping[str, float]) -> None:
        """An epoch of a trial ended."""

    def on_end(
        self, assignment: Assignment, state: TrialState, metrics: Mapping[str, float], error: str
    ) -> None:
        """A trial ended: COMPLETE, PRUNED or FAIL (then with the error's text)."""


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
        journal.parent.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(journal)))
        self.studies = {key: self._open(storage, key) for key in self._keys()}
        for key in self.studies:
            # A crash may have come between a study's last trial and its finals.
            if not key.final and self._remaining(key) <= 0:
                self._plan_finals(key)

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
        study = self.studies[assignment.key]
        # The journal hears last: after a crash in between the trial is still RUNNING there, and the
        # next start tells everyone how it ended. Told first, the others would never hear of it.
        for listener in self.listeners:
            listener.on_end(assignment, state, metrics, error)
        objective = metrics["val/accuracy"] if state is TrialState.COMPLETE else None
        study.tell(trial, objective, state=state)
        self.num_failed += state is TrialState.FAIL
        if not assignment.key.final and self._remaining(assignment.key) == 0:
            self._plan_finals(assignment.key)

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
        return [trial for trial in ended if not trial.user_attrs.get(INTERRUPTED)]

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

    def _open(self, storage: JournalStorage, key: StudyKey) -> optuna.Study:
        study = optuna.create_study(
            storage=storage, study_name=key.name, direction="maximize", load_if_exists=True
        )
        study.pruner = _pruner(self.config, self.experiment.train.num_epochs)
        # Restarts must not draw the first start's random numbers again.
        salt = f"{self.config.seed}/{key.name}/{len(study.get_trials(deepcopy=False))}"
        study.sampler = _sampler(self.config, zlib.crc32(salt.encode()))
        self._recover(key, study)
        if not key.final and not study.get_trials(deepcopy=False):
            values = defaults_within(self.experiment, self.space.by_method[key.method])
            study.enqueue_trial(values)
        return study

    def _recover(self, key: StudyKey, study: optuna.Study) -> None:
        """Tell trials that died with the last process FAIL, and enqueue their settings again."""
        for orphan in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            trial = Trial(study, orphan._trial_id)
            trial.set_user_attr(INTERRUPTED, True)
            attrs = {name: orphan.user_attrs[name] for name in (SEED,) if name in orphan.user_attrs}
            assignment = self._assignment(key, trial)
            for listener in self.listeners:
                listener.on_start(assignment)
                listener.on_end(assignment, TrialState.FAIL, {}, INTERRUPTED)
            study.tell(orphan.number, state=TrialState.FAIL)
            study.enqueue_trial(orphan.params, user_attrs={RETRY_OF: orphan.number, **attrs})

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
        seed = int(trial.user_attrs.get(SEED, self.experiment.train.seed))
        width = self.rungs[key.capacity].width
        return Assignment(key, trial.number, width, dict(trial.params), seed)

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
            if not trial.user_attrs.get(INTERRUPTED)
        }
        if winner is None:
            return
        for position in range(self.planned(final)):
            seed = self.experiment.train.seed + FINAL_SEED_OFFSET + position
            if seed not in taken:
                study.enqueue_trial(winner.params, user_attrs={SEED: seed})


def _pruner(config: SearchConfig, num_epochs: int) -> optuna.pruners.BasePruner:
    if config.early_stopping == "none" or config.grace_epochs >= num_epochs:
        return optuna.pruners.NopPruner()
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=config.grace_epochs, reduction_factor=config.reduction_factor
    )


def _sampler(config: SearchConfig, seed: int) -> optuna.samplers.BaseSampler:
    if config.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    # Optuna's default of ten random trials would be the whole of a small budget.
    num_startup = min(10, max(3, config.trials_per_rung // 4))
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=num_startup)
