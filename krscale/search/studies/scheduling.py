"""Whose turn it is: which study gets the next trial, when one has had its share, and its finals."""

from __future__ import annotations

from collections.abc import Mapping

from krscale.config import Experiment
from krscale.search.studies.budgets import Budget, Ending, find_ending
from krscale.search.studies.sampling import num_grid_points
from krscale.search.studies.study import FinalStudy, TuningStudy
from krscale.search.studies.trial_spec import StudyKey

FINAL_SEED_OFFSET = 1000  # far from the seed that tuning used, so that finals are fresh


class StudyScheduler:
    """The order of all studies: even progress, and a winner's finals once its study has ended.

    Args:
        experiment: The search's settings.
        studies: All studies, the largest students first.
        budget: What ends them early.
    """

    def __init__(
        self, experiment: Experiment, studies: Mapping[StudyKey, TuningStudy], budget: Budget
    ) -> None:
        self.config, self.first_seed = experiment.search, experiment.train.seed + FINAL_SEED_OFFSET
        self.studies, self.budget = studies, budget

    def furthest_behind(self) -> StudyKey | None:
        """Return the study whose turn it is; None if none may start a trial.

        What ended is noted in the journal here, and the finals of its winner are enqueued.
        """
        for key in self.studies:
            if not key.final and not self.studies[key].num_running and (end := self.ending(key)):
                self.studies[key].end(end.name)
                self._plan_finals(key)
        may_start = [key for key in self.studies if self._may_start(key)]
        # The first of equals, and larger students come first.
        return min(
            may_start, key=lambda k: self.studies[k].num_started / self.planned(k), default=None
        )

    def planned(self, key: StudyKey) -> int:
        """Return how many trials a study is meant to have."""
        if key.final:
            return self.config.num_final_seeds
        points = num_grid_points(self.studies[key].optuna)
        return min(self.config.trials_per_size, points or self.config.trials_per_size)

    def ending(self, key: StudyKey) -> Ending | None:
        """Return why a tuning study starts no more trials; None while it does."""
        return find_ending(self.studies[key], self.planned(key), self.budget)

    def final_of(self, key: StudyKey) -> FinalStudy:
        """Return the finals of a tuning study."""
        final = self.studies[StudyKey(key.method, key.capacity, final=True)]
        assert isinstance(final, FinalStudy)  # noqa: S101
        return final

    def _may_start(self, key: StudyKey) -> bool:
        if not key.final:
            return self.ending(key) is None
        tuning = StudyKey(key.method, key.capacity)
        tuned = self.ending(tuning) is not None and not self.studies[tuning].num_running
        # A final needs a seed that only an enqueued trial carries.
        return tuned and self.studies[key].num_waiting > 0

    def _plan_finals(self, key: StudyKey) -> None:
        final = self.final_of(key)
        if final.num_started + final.num_waiting < self.planned(final.key):
            seeds = range(self.first_seed, self.first_seed + self.planned(final.key))
            final.plan(list(seeds))
