"""Scheduling: which study gets the next trial, when one ends, and the finals of its winner."""

from __future__ import annotations

from collections.abc import Mapping

from krscale.config import Experiment
from krscale.search.studies.budgets import Budget, Ending, find_ending
from krscale.search.studies.study import FinalStudy, Study, TuningStudy
from krscale.search.studies.trial_spec import FinalKey, TuningKey

FINAL_SEED_OFFSET = 1000  # far from tuning's seed, so that finals use fresh seeds


class StudyScheduler:
    """The order of all studies: even progress, and a winner's finals once its study has ended.

    Args:
        experiment: The search's settings.
        tuning: The tuning studies, from the largest students.
        finals: The final trainings of each study's winner, in the same order.
        budget: The limits that end tuning early.
    """

    def __init__(
        self,
        experiment: Experiment,
        tuning: Mapping[TuningKey, TuningStudy],
        finals: Mapping[FinalKey, FinalStudy],
        budget: Budget,
    ) -> None:
        self.config, self.first_seed = experiment.search, experiment.train.seed + FINAL_SEED_OFFSET
        self.tuning, self.finals, self.budget = tuning, finals, budget
        self._ended: dict[TuningKey, Ending] = {}

    def furthest_behind(self) -> Study | None:
        """Return the study that gets the next trial; None if none may start one.

        Studies that ended are recorded in the journal here, and their finals are enqueued.
        """
        for key, study in self.tuning.items():
            if not study.num_running and (end := self.ending(study)):
                study.end(end.name, self.config.max_wall_seconds)
                self._ended[key] = end
                self._plan_finals(self.finals[key.finals])
        open_ones = [study for study in self.tuning.values() if self.ending(study) is None]
        may_start = [*open_ones, *filter(self._may_start, self.finals.values())]
        # min returns the first of equal studies, and larger students come first.
        return min(may_start, key=lambda s: s.num_started / s.planned(self.config), default=None)

    def ending(self, study: TuningStudy) -> Ending | None:
        """Return why a tuning study starts no more trials; None if it starts more.

        A study whose winner is being trained again stays ended, even if an interrupted trial of
        another study gives its epochs back. Otherwise, two winners would be trained into the same
        files.
        """
        now = find_ending(study, study.planned(self.config), self.budget)
        return now or self._ended.get(TuningKey(study.key.method, study.key.capacity))

    def _may_start(self, finals: FinalStudy) -> bool:
        tuned = self.ending(finals.tuning) is not None and not finals.tuning.num_running
        # A final needs a seed, which only an enqueued trial has. If `num_final_seeds` was reduced,
        # more finals may be waiting than are wanted.
        has_room = finals.num_started < finals.planned(self.config)
        return tuned and finals.num_waiting > 0 and has_room

    def _plan_finals(self, finals: FinalStudy) -> None:
        planned = finals.planned(self.config)
        if finals.num_started + finals.num_waiting < planned:
            finals.plan(list(range(self.first_seed, self.first_seed + planned)))
