"""The ladder search: one Optuna study per (method, rung), asked and told by us. No Ray here.

The journal is the only truth. Every start continues it: trials that were running when the last
process died are told FAIL (`interrupted`), run again from their last checkpoint (`retry_of`, see
`retries.py`), and the count of trials comes out exact. Early stopping reads the values in the
journal, so its memory survives a restart as well, and it sees one study, hence one method at one
capacity, at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from krscale.config import Experiment
from krscale.rungs import Rung
from krscale.search.assignment import Assignment, Listener, StudyKey
from krscale.search.budgets import Budget
from krscale.search.journal import Journal
from krscale.search.objectives import objectives_of, trial_values
from krscale.search.retries import (
    ALONE,
    CONTINUES,
    SEED,
    Cause,
    deserves_retry,
    run_again,
)
from krscale.search.sampling import num_startup
from krscale.search.sizes import FixedSizes, Sizes
from krscale.search.space import SearchSpace
from krscale.search.studies import StudyOpener, trial_name
from krscale.search.tally import FinalTally, Tally
from krscale.search.transfer import transfer
from krscale.search.turns import Turns
from krscale.search.unfinished import forget, sweep, unfinished_path

MAX_FORBIDDEN = 50
"""Suggestions in a row that break a limit, after which a study is given up."""


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
        sizes: How large a student is, and whether it is allowed; None takes every rung as it is.
        clock: Seconds; replaced in tests.
    """

    def __init__(
        self,
        journal: Path,
        experiment: Experiment,
        space: SearchSpace,
        rungs: Iterable[Rung],
        listeners: Iterable[Listener] = (),
        *,
        sizes: Sizes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.experiment, self.config, self.space = experiment, experiment.search, space
        self.rungs = {r.capacity: r for r in sorted(rungs, key=lambda r: r.num_parameters)}
        self.sizes = sizes or FixedSizes(self.rungs)
        self.listeners = tuple(listeners)
        self.running: dict[str, tuple[Assignment, Trial]] = {}
        self.parked: list[tuple[Assignment, Trial]] = []
        self.num_failed = 0
        self.run_path = journal.parent
        self.journal = Journal(journal)
        self.tallies: dict[StudyKey, Tally] = {}
        opener = StudyOpener(self.journal.storage, experiment, space)
        for key in self._keys():
            study = opener.open(key)
            tuning = self.tallies.get(StudyKey(key.method, key.capacity))
            self.tallies[key] = FinalTally(key, study, tuning) if tuning else Tally(key, study)
            self._recover(self.tallies[key])
        tuned = [tally.counted() for key, tally in self.tallies.items() if not key.final]
        self.budget = Budget(self.config, (trial for trials in tuned for trial in trials), clock)
        self.turns = Turns(experiment, self.tallies, self.budget)
        sweep(self.run_path, {unfinished_path(self.run_path, n) for n in self._continued()})

    @property
    def studies(self) -> dict[StudyKey, optuna.Study]:
        """Optuna's studies."""
        return {key: tally.study for key, tally in self.tallies.items()}

    def next(self) -> Assignment | Next:
        """Hand out the next trial: the study furthest behind first, larger students before smaller.

        Large students first keeps the tail of the search short; even progress lets every study
        learn from its own trials. A study that waits for its last trials holds up no other. Trials
        that must run alone come when nothing else is left to start, one at a time.
        """
        if any(assignment.alone for assignment, _ in self.running.values()):
            return Next.WAIT
        while key := self.turns.furthest_behind():
            asked = self._ask(key)
            if asked and not asked[0].alone:
                return self._hand_out(*asked)
            self.parked += [asked] if asked else []
        if self.parked and len(self.running) == 0:
            return self._hand_out(*self.parked.pop(0))
        return Next.WAIT if self.running or self.parked else Next.DONE

    def report(self, assignment: Assignment, metrics: Mapping[str, float]) -> bool:
        """Record one epoch; return whether the trial should stop now."""
        for listener in self.listeners:
            listener.on_epoch(assignment, metrics)
        _, trial = self.running[assignment.name]
        single = len(objectives_of(assignment.key, self.config.objectives)) == 1
        if single:  # with several, Optuna keeps no epochs
            trial.report(metrics["val/accuracy"], int(metrics["epoch"]))
        if assignment.key.final:
            return False
        self.budget.num_epochs += 1
        return single and trial.should_prune()

    def finish(
        self,
        assignment: Assignment,
        state: TrialState,
        metrics: Mapping[str, float],
        error: str = "",
    ) -> None:
        """Tell the study how a trial ended, with its last metrics and, if it failed, why."""
        tally, (_, trial) = self.tallies[assignment.key], self.running.pop(assignment.name)
        for name, value in metrics.items():
            trial.set_user_attr(name, value)
        if error:
            trial.set_user_attr("error", error)
        # The journal hears last: after a crash in between the trial is still RUNNING there, and the
        # next start tells everyone how it ended. Told first, the others would never hear of it.
        for listener in self.listeners:
            listener.on_end(assignment, state, metrics, error)
        objectives = objectives_of(assignment.key, self.config.objectives)
        complete = state is TrialState.COMPLETE
        values = trial_values(objectives, assignment, metrics) if complete else None
        tally.study.tell(trial, values, state=state)
        self.journal.sync()
        tally.num_running -= 1
        tally.recount()
        if not assignment.key.final:
            self.turns.final_of(assignment.key).recount()  # the winner may be another now
        forget(self.run_path, assignment.name, assignment.continues)
        self.num_failed += state is TrialState.FAIL
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
        _, trial = self.running[assignment.name]
        if not deserves_retry(trial, cause, self.config.max_retries):
            self.finish(assignment, TrialState.FAIL, metrics, error)
            return
        del self.running[assignment.name]
        tally = self.tallies[assignment.key]
        tally.num_running -= 1
        if not assignment.key.final:
            self.budget.num_epochs -= int(metrics.get("epoch", 0))  # its next attempt recalls them
        self._run_again(tally, assignment, cause)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to run."""
        return not self.running and not self.parked and self.turns.furthest_behind() is None

    def planned(self, key: StudyKey) -> int:
        """Number of trials a study is meant to have."""
        return self.turns.planned(key)

    def ended_by(self, key: StudyKey) -> str:
        """Return why a tuning study starts no more trials; empty while it does."""
        ending = self.turns.ending(key)
        return ending.text if ending else ""

    def counted(self, key: StudyKey) -> list[FrozenTrial]:
        """Ended trials that count towards the plan: all but the interrupted ones."""
        return self.tallies[key].counted()

    def finals(self, method: str, capacity: str) -> list[FrozenTrial]:
        """Complete final trainings of a study's winner, in the order of their seeds."""
        ended = self.counted(StudyKey(method, capacity, final=True))
        complete = [trial for trial in ended if trial.state is TrialState.COMPLETE]
        return sorted(complete, key=lambda trial: int(trial.user_attrs[SEED]))

    def winner(self, method: str, capacity: str) -> FrozenTrial | None:
        """Best complete trial by validation accuracy, then by validation loss; None if none."""
        return self.tallies[StudyKey(method, capacity)].winner()

    def trial_name(self, key: StudyKey, number: int) -> str:
        """Name of a trial, as in `Assignment.name`."""
        return trial_name(self.tallies[key].study, key, number)

    def _keys(self) -> list[StudyKey]:
        return [
            StudyKey(method, capacity, final)
            for final in (False, True)
            for capacity in reversed(self.rungs)
            for method in self.config.methods
        ]

    def _ask(self, key: StudyKey) -> tuple[Assignment, Trial] | None:
        """Ask a study for its next trial; None if it finds no student that is allowed."""
        tally = self.tallies[key]
        if self.config.transfer and self.config.sampler != "grid" and not key.final:
            transfer(
                key, self.tallies, list(self.rungs), self.planned(key), num_startup(self.config)
            )
        tally.reopen()
        for _ in range(MAX_FORBIDDEN):
            trial = tally.study.ask()
            values = self.space.suggest(key.method, trial)
            excess = self.sizes.excess(key.capacity, values)
            if not excess:
                tally.num_running += 1
                tally.recount()
                return self._assignment(key, trial), trial
            tally.forbid(trial, excess)
        tally.given_up = True
        return None

    def _hand_out(self, assignment: Assignment, trial: Trial) -> Assignment:
        self.running[assignment.name] = assignment, trial
        for listener in self.listeners:
            listener.on_start(assignment)
        return assignment

    def _assignment(self, key: StudyKey, trial: Trial) -> Assignment:
        attrs, values = trial.user_attrs, dict(trial.params)
        continues = attrs.get(CONTINUES)
        return Assignment(
            key=key,
            number=trial.number,
            name=self.trial_name(key, trial.number),
            rung=self.sizes.rung(key.capacity, values),
            values=values,
            seed=int(attrs.get(SEED, self.experiment.train.seed)),
            continues="" if continues is None else self.trial_name(key, int(continues)),
            alone=bool(attrs.get(ALONE, False)),
            latency_ms=self._latency_ms(key, values),
        )

    def _latency_ms(self, key: StudyKey, values: Mapping[str, Any]) -> float | None:
        wanted = "latency_ms" in self.config.objectives
        return self.sizes.latency_ms(key.capacity, values) if wanted else None

    def _recover(self, tally: Tally) -> None:
        """Run trials again that died with the last process."""
        for orphan in tally.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            assignment = self._assignment(tally.key, Trial(tally.study, orphan._trial_id))
            for listener in self.listeners:
                listener.on_start(assignment)
            self._run_again(tally, assignment, Cause.SEARCH)

    def _run_again(self, tally: Tally, assignment: Assignment, cause: Cause) -> None:
        # Listeners hear before the journal, as in `finish`.
        for listener in self.listeners:
            listener.on_end(assignment, TrialState.FAIL, {}, cause.text)
        own = unfinished_path(self.run_path, assignment.name)
        run_again(tally.study, assignment.number, cause, has_checkpoint=own.exists())
        tally.recount()

    def _continued(self) -> list[str]:
        """Return the names of interrupted trials from which a waiting one goes on."""
        return [
            self.trial_name(key, int(trial.user_attrs[CONTINUES]))
            for key, tally in self.tallies.items()
            for trial in tally.waiting()
            if CONTINUES in trial.user_attrs
        ]
