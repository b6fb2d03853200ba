"""Open studies in the journal: new ones, existing ones, and a new one if the space has changed.

Optuna cannot continue a study whose choices have changed, and trials of two spaces do not belong to
one search. A method whose space has changed (`--new-space`) gets a new study, `kr@1/16 #2`, with
its own budget. The old study stays in the journal, where it can be viewed, and is continued if the
old space is used again.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import optuna
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from krscale.config import Experiment
from krscale.search.space.space import SearchSpace, defaults_within
from krscale.search.studies.journal import Journal
from krscale.search.studies.objectives import directions
from krscale.search.studies.pruners import make_pruner
from krscale.search.studies.retries import SEED
from krscale.search.studies.samplers import make_sampler
from krscale.search.studies.study import FORBIDDEN, FinalStudy, TuningStudy, counted
from krscale.search.studies.trial_spec import FinalKey, StudyKey, TuningKey, key_of

_SPACE = "space"
VERSION = "version"
TRAINING = "training"
"""User attribute of a final training: the number of final trainings started in the run, including
this one. It shows which training wrote a student last."""
IN_USE = "in_use"
"""User attribute of a study whose space is used again after another one: a number larger than all
versions, and than this attribute of the other studies, when the study was last opened."""


class StudyOpener:
    """Opens or creates the studies of one search.

    Args:
        storage: Storage of the journal.
        experiment: The search's settings; its own values are each study's first trial.
        space: The search space, with the distributions of every method.
    """

    def __init__(self, storage: BaseStorage, experiment: Experiment, space: SearchSpace) -> None:
        self.storage, self.experiment, self.space = storage, experiment, space
        self.described = space.describe()

    def open_tuning(self, key: TuningKey) -> TuningStudy:
        """Return the study of this key and the present space, with its sampler and pruner."""
        config = self.experiment.search
        study = self._find(key, TuningStudy.objectives(config))
        num_trials = len(study.get_trials(deepcopy=False))
        # A restart must not draw the random numbers of the first start again.
        seed = zlib.crc32(f"{config.seed}/{key.name}/{num_trials}".encode())
        study.pruner = make_pruner(config, self.experiment.train.num_epochs)
        study.sampler = make_sampler(config, self.space, key.method, seed)
        if not num_trials and config.sampler != "grid":
            study.enqueue_trial(defaults_within(self.experiment, self.space.by_method[key.method]))
        return TuningStudy(key, study)

    def open_finals(self, tuning: TuningStudy) -> FinalStudy:
        """Return the final trainings of a study's winner; all are enqueued, none is sampled."""
        key = FinalKey(tuning.key.method, tuning.key.capacity)
        study = self._find(key, FinalStudy.objectives(self.experiment.search))
        study.sampler, study.pruner = RandomSampler(), NopPruner()
        return FinalStudy(key, study, tuning)

    def _find(self, key: StudyKey, objectives: Sequence[str]) -> optuna.Study:
        described = self.described[key.method]
        for version in itertools.count(1):
            name = key.name if version == 1 else f"{key.name} #{version}"
            study = optuna.create_study(
                storage=self.storage,
                study_name=name,
                directions=directions(objectives),
                load_if_exists=True,
            )
            attrs = study.user_attrs
            if VERSION not in attrs:
                study.set_user_attr(_SPACE, described)
                study.set_user_attr(VERSION, version)
                self._use(key, study)  # a space that came back before has a number as large
                return study
            if attrs.get(_SPACE) == described:
                self._use(key, study)
                return study
        raise AssertionError("unreachable")

    def _use(self, key: StudyKey, study: optuna.Study) -> None:
        """Record that this study is in use, if the study of another space was the last in use."""
        versions = [other for _, other in _all_studies(self.storage, key)]
        last = max(versions, key=_use_of)
        if last.study_name != study.study_name:
            study.set_user_attr(IN_USE, _use_of(last) + 1)


def present_studies(storage: BaseStorage) -> dict[StudyKey, optuna.Study]:
    """Return the studies of a journal; if a space has changed, only the study last opened."""
    found: dict[StudyKey, optuna.Study] = {}
    for key, study in _all_studies(storage):
        if key not in found or _use_of(study) > _use_of(found[key]):
            found[key] = study
    return found


def last_trained(storage: BaseStorage) -> dict[tuple[StudyKey, int], tuple[str, int]]:
    """Return the last training of each seed of all final studies: its study and number.

    Only its student is kept: settings that won before, and those of another space, were trained
    with the same seeds.
    """
    found: dict[tuple[StudyKey, int], tuple[int, datetime, str, int]] = {}
    for key, study, trial in _final_trainings(storage):
        if trial.datetime_start is None or FORBIDDEN in trial.user_attrs:
            continue
        place, started = (key, int(trial.user_attrs[SEED])), trial.datetime_start
        # Clocks can be set back, so time only decides in journals older than these numbers.
        this = int(trial.user_attrs.get(TRAINING, 0)), started, study.study_name, trial.number
        found[place] = max(this, found.get(place, this))
    return {place: (name, number) for place, (_, _, name, number) in found.items()}


def num_trainings(storage: BaseStorage) -> int:
    """Return the largest number (`TRAINING`) of a final training in a journal; 0 without any."""
    found = _final_trainings(storage)
    return max((int(trial.user_attrs.get(TRAINING, 0)) for _, _, trial in found), default=0)


def _final_trainings(
    storage: BaseStorage,
) -> Iterator[tuple[FinalKey, optuna.Study, FrozenTrial]]:
    for key, study in _all_studies(storage):
        if isinstance(key, FinalKey):
            yield from ((key, study, trial) for trial in study.get_trials(deepcopy=False))


def _all_studies(
    storage: BaseStorage, wanted: StudyKey | None = None
) -> Iterator[tuple[StudyKey, optuna.Study]]:
    for name in optuna.get_all_study_names(storage):  # in the order in which they were created
        key = key_of(name)
        if wanted in (None, key):
            yield key, optuna.load_study(study_name=name, storage=storage)


def _use_of(study: optuna.Study) -> int:
    """Return a number that is larger the later a version of a study was last opened."""
    return int(study.user_attrs.get(IN_USE, study.user_attrs.get(VERSION, 1)))


def trials_that_ran(journal: Path) -> dict[str, int]:
    """Return how much of each budget (`experiment_file.BUDGETS`) a journal's studies have used."""
    used = {"search.trials_per_size": 0, "search.num_final_seeds": 0}
    if not journal.exists():
        return used
    for key, study in present_studies(Journal(journal).storage).items():
        trials = counted(study)
        if isinstance(key, FinalKey):
            budget, amount = "search.num_final_seeds", len({t.user_attrs.get(SEED) for t in trials})
        else:
            budget, amount = "search.trials_per_size", len(trials)
        used[budget] = max(used[budget], amount)
    return used


def trial_name(study: optuna.Study, key: StudyKey, number: int) -> str:
    """Return the name of a trial, usable as a path; unique over all versions of a study."""
    version = study.user_attrs.get(VERSION, 1)
    name = key.trial_name(number)
    return name if version == 1 else f"{name}-space-{version}"
