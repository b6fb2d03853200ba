"""One study of the ladder and its trial counts: what ended, what counts, and which trial won.

Counts are kept in memory, because choosing among many studies for every trial must not read the
journal. The journal has one writer (`journal.py`), so the counts stay correct.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from krscale.config import SearchConfig
from krscale.errors import KrscaleError
from krscale.metrics import VAL_ACCURACY
from krscale.search.studies.objectives import merit
from krscale.search.studies.retries import RETRY_OF, SEED, was_interrupted
from krscale.search.studies.samplers import num_grid_points
from krscale.search.studies.trial_spec import FinalKey, StudyKey, TuningKey

FORBIDDEN = "forbidden"
"""User attribute of a suggestion that broke limits and was never trained: the limits."""
LOST = "lost_students"
"""User attribute of a final study: numbers of complete trainings whose student is missing."""
ENDED_BY = "ended_by"
"""User attribute of a study: which of `ENDINGS` ended its tuning; empty while it continues."""
ENDINGS = (
    "trials_per_size", "grid", "target_accuracy", "max_wall_seconds", "max_epochs", "size_limits",
)  # fmt: skip
"""The settings of `search` that end a study; a grid with fewer points than the planned trials; and
the limits on students, all under one name."""
_FULL = ("trials_per_size", "grid")
"""The endings that a larger budget revokes."""
GIVEN_UP = "given_up"
"""User attribute of a study that finds no student within the limits: the reason, and the number of
planned trials. Only a larger plan makes it try again."""
SPENT_SECONDS = "spent_seconds"
"""User attribute of a study: the largest `search.max_wall_seconds` that have passed; 0 if a study
of another space has been added since."""
_RENAMED_ENDINGS = {"trials_per_rung": "trials_per_size"}
"""Journals contain the name that a setting had when they were written."""
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """Return ended trials that count: not interrupted ones, nor forbidden suggestions."""
    ended = study.get_trials(deepcopy=False, states=_ENDED)
    return [t for t in ended if not was_interrupted(t) and FORBIDDEN not in t.user_attrs]


class Study(ABC):
    """One Optuna study of the ladder and its counts.

    Attributes:
        num_counted: Number of ended trials that count towards the plan.
        num_waiting: Number of enqueued trials.
        num_cut_short: Number of enqueued trials that were interrupted and are run again.
        num_running: Number of trials that were handed out and have not ended.
    """

    def __init__(self, key: StudyKey, study: optuna.Study) -> None:
        self.key, self.optuna = key, study
        self.num_running = 0
        self.recount()

    @staticmethod
    @abstractmethod
    def objectives(config: SearchConfig) -> Sequence[str]:
        """Return the objectives of its trials."""

    @abstractmethod
    def planned(self, config: SearchConfig) -> int:
        """Return the planned number of its trials."""

    def recount(self) -> None:
        """Read the counts from the journal."""
        self._count_waiting()
        self.num_counted = len(self.counted())

    @property
    def num_started(self) -> int:
        """Number of trials that count, or will once they end."""
        return self.num_counted + self.num_running

    def require_room(self, config: SearchConfig) -> None:
        """Refuse to start a trial beyond the plan; counts the study's trials, not those in memory.

        Raises:
            KrscaleError: If as many trials as planned have been started; a defect of krscale.
        """
        planned, trials = self.planned(config), self.optuna.get_trials(deepcopy=False)
        num_started = sum(map(self._is_of_plan, trials))
        if num_started >= planned:
            raise KrscaleError(
                f"internal error: the study {self.key.name} has started {num_started} trials and "
                f"would start another; its plan is {planned}. The search stops here. What it has "
                f"found is in the journal; please report this."
            )

    def _is_of_plan(self, trial: FrozenTrial) -> bool:
        """Return whether a trial was started and counts, or will once it ends."""
        started = trial.state is not TrialState.WAITING
        return started and not was_interrupted(trial) and FORBIDDEN not in trial.user_attrs

    def counted(self) -> list[FrozenTrial]:
        """Return ended trials that count; see the function `counted`."""
        return counted(self.optuna)

    def waiting(self) -> list[FrozenTrial]:
        """Return enqueued trials."""
        return list(self.optuna.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def ask(self) -> Trial:
        """Return the next trial: an interrupted one that waits, else the next of Optuna.

        Optuna returns the trial that was enqueued first. Once a limit has been reached, only
        interrupted trials may start, and settings of a neighbouring size may be before them.
        """
        for waiting in self.waiting() if self.num_cut_short else ():
            if RETRY_OF in waiting.user_attrs:
                storage, number = self.optuna._storage, waiting._trial_id
                storage.set_trial_state_values(number, TrialState.RUNNING)
                return Trial(self.optuna, number)
        return self.optuna.ask()

    def _count_waiting(self) -> None:
        waiting = self.waiting()
        self.num_waiting = len(waiting)
        self.num_cut_short = sum(RETRY_OF in trial.user_attrs for trial in waiting)


class TuningStudy(Study):
    """The trials that search the settings of a method at a size.

    Attributes:
        best: Best validation accuracy of a complete trial; 0 before there is one.
        ended_by: The recorded ending, one of `ENDINGS`; empty while the study continues.
        spent_seconds: The recorded `search.max_wall_seconds` that have passed; 0 if none have.
    """

    def __init__(self, key: TuningKey, study: optuna.Study) -> None:
        super().__init__(key, study)
        self._given_up: Mapping[str, Any] = study.user_attrs.get(GIVEN_UP, {})
        self.spent_seconds = float(study.user_attrs.get(SPENT_SECONDS, 0.0))
        noted = study.user_attrs.get(ENDED_BY, "")
        noted = _RENAMED_ENDINGS.get(noted, noted)
        self.ended_by: str = noted if noted in ENDINGS else ""  # older journals: sentences

    @staticmethod
    def objectives(config: SearchConfig) -> Sequence[str]:
        """Return the objectives of the search."""
        return config.objectives

    def planned(self, config: SearchConfig) -> int:
        """Return `search.trials_per_size`, or the points of a smaller grid."""
        points = num_grid_points(self.optuna)
        return min(config.trials_per_size, points or config.trials_per_size)

    def recount(self) -> None:
        """Read the counts, and the best trial, from the journal."""
        super().recount()
        winner = self.winner()
        self.best = float(winner.values[0]) if winner else 0.0

    def end(self, name: str, seconds: float) -> None:
        """Record what ended the study; a later reason only replaces an ending in `_FULL`.

        Args:
            name: One of `ENDINGS`.
            seconds: Value of `search.max_wall_seconds`.
        """
        if name == "max_wall_seconds" and self.spent_seconds < seconds:
            self._note_spent(seconds)  # even if another reason or a smaller limit ended it
        if self.ended_by and (self.ended_by not in _FULL or name in _FULL):
            return
        self._note(name)

    @property
    def is_new(self) -> bool:
        """Whether none of its trials has begun and nothing has prevented them."""
        begun = len(self.optuna.get_trials(deepcopy=False)) > self.num_waiting
        return not (begun or self.ended_by or self.spent_seconds)

    def take_back_spent(self) -> None:
        """Revoke that the time of the search has passed, because a study without any was added.

        From then on, the times of trials count, as in a search whose time has never passed.
        """
        if self.spent_seconds:
            self._note_spent(0.0)

    def give_up(self, reason: str, planned: int) -> None:
        """Start no more trials, because no allowed student is found.

        Args:
            reason: The reason, in words.
            planned: Planned number of trials.
        """
        self._given_up = {"reason": reason, "planned": planned}
        self.optuna.set_user_attr(GIVEN_UP, self._given_up)

    def given_up(self, planned: int) -> str:
        """Return why the study finds no allowed student; empty while it finds one.

        An interrupted trial that waits is run again in any case, since its student is allowed.
        """
        if self.num_waiting or planned > int(self._given_up.get("planned", 0)):
            return ""
        return str(self._given_up.get("reason", ""))

    def reopen(self) -> None:
        """Revoke that the study has ended, because it continues."""
        if self.ended_by:
            self._note("")

    def _note_spent(self, seconds: float) -> None:
        self.optuna.set_user_attr(SPENT_SECONDS, seconds)
        self.spent_seconds = seconds

    def _note(self, name: str) -> None:
        self.optuna.set_user_attr(ENDED_BY, name)
        self.ended_by = name

    def forbid(self, trial: Trial, excess: Mapping[str, float]) -> None:
        """Reject a suggestion that breaks limits: samplers learn of it, the budget excludes it.

        Args:
            trial: The suggestion.
            excess: Limit -> how far the suggestion exceeds it.
        """
        for limit, amount in excess.items():
            trial.set_constraint(limit, amount)
        trial.set_user_attr(FORBIDDEN, ", ".join(excess))
        self.optuna.tell(trial, state=TrialState.PRUNED)
        self._count_waiting()  # the suggestion may have been enqueued

    def winner(self) -> FrozenTrial | None:
        """Return the best complete trial by validation accuracy, then `merit`; None without one."""
        complete = self.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if not complete:
            return None
        return max(complete, key=lambda trial: merit(self.optuna, trial))


class FinalStudy(Study):
    """The final trainings of a tuning study's winner; those of a former winner do not count."""

    def __init__(self, key: FinalKey, study: optuna.Study, tuning: TuningStudy) -> None:
        self.tuning = tuning
        super().__init__(key, study)

    @staticmethod
    def objectives(config: SearchConfig) -> Sequence[str]:
        """Return only accuracy: finals just measure how accurate the winner becomes."""
        del config
        return (VAL_ACCURACY,)

    def planned(self, config: SearchConfig) -> int:
        """Return `search.num_final_seeds`."""
        return config.num_final_seeds

    def _is_of_plan(self, trial: FrozenTrial) -> bool:
        winner = self.tuning.winner()
        if winner is None or trial.params != winner.params or trial.number in self.lost:
            return False
        return super()._is_of_plan(trial)

    def counted(self) -> list[FrozenTrial]:
        """Return ended trainings of the present winner's settings, except those that were lost."""
        winner = self.tuning.winner()
        return [
            trial
            for trial in super().counted()
            if winner is not None
            and trial.params == winner.params
            and trial.number not in self.lost
        ]

    @property
    def lost(self) -> frozenset[int]:
        """Numbers of trainings whose student is missing; they do not count and are run again."""
        return frozenset(self.optuna.user_attrs.get(LOST, ()))

    def lose(self, numbers: Iterable[int]) -> None:
        """Record in the journal that the students of some trainings are missing."""
        self.optuna.set_user_attr(LOST, sorted(self.lost.union(numbers)))
        self.recount()

    def waiting(self) -> list[FrozenTrial]:
        """Return enqueued trainings of the present winner's settings."""
        winner = self.tuning.winner()
        return [
            trial
            for trial in super().waiting()
            if winner is not None and trial.system_attrs.get("fixed_params", {}) == winner.params
        ]

    def complete(self) -> list[FrozenTrial]:
        """Return the complete trainings of the present winner, in the order of their seeds."""
        done = [trial for trial in self.counted() if trial.state is TrialState.COMPLETE]
        return sorted(done, key=lambda trial: int(trial.user_attrs[SEED]))

    def plan(self, seeds: list[int]) -> None:
        """Enqueue the winner with each seed it has not been trained with; safe to repeat.

        Enqueued trainings of a former winner are removed.
        """
        winner = self.tuning.winner()
        if winner is None:
            return
        if len(super().waiting()) > len(self.waiting()):
            self._empty_queue(len(super().waiting()))
        taken = {
            trial.user_attrs.get(SEED)
            for trial in self.optuna.get_trials(deepcopy=False)
            if trial.state is TrialState.WAITING
            or (
                trial.params == winner.params
                and not was_interrupted(trial)
                and trial.number not in self.lost
            )
        }
        for seed in seeds:
            if seed not in taken:
                self.optuna.enqueue_trial(winner.params, user_attrs={SEED: seed})
        self.recount()

    def _empty_queue(self, length: int) -> None:
        for _ in range(length):
            trial = self.optuna.ask()
            trial.set_user_attr(FORBIDDEN, "another trial has won since")
            self.optuna.tell(trial, state=TrialState.FAIL)
