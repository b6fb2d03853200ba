"""Settings are lent to a study from the sizes beside it: once, early, and only if they are new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial

from krscale.search.studies.study import TuningStudy
from krscale.search.studies.transfer import TRANSFERRED_FROM, transfer
from krscale.search.studies.trial_spec import TuningKey

CAPACITIES = ("1/64", "1/16", "1/8", "1/4")
RATE = "train.learning_rate"


def studies_of(rates: Mapping[str, Sequence[float]]) -> dict[TuningKey, TuningStudy]:
    """Return a study per size with trials of these learning rates; the largest rate is the best."""
    found = {}
    for capacity in CAPACITIES:
        study = optuna.create_study(direction="maximize")
        for rate in rates.get(capacity, ()):
            between = {RATE: FloatDistribution(0.0, 1.0)}
            study.add_trial(create_trial(params={RATE: rate}, distributions=between, value=rate))
        key = TuningKey("kr", capacity)
        found[key] = TuningStudy(key, study)
    return found


def lent(studies: dict[TuningKey, TuningStudy], capacity: str, num_planned: int = 20) -> list[str]:
    """Return what a study is lent: size, trial and learning rate of each."""
    key = TuningKey("kr", capacity)
    transfer(key, studies, CAPACITIES, num_planned, num_startup=3)
    waiting = studies[key].waiting()
    assert studies[key].num_waiting == len(waiting)
    return [
        f"{trial.user_attrs[TRANSFERRED_FROM]}: {trial.system_attrs['fixed_params'][RATE]}"
        for trial in waiting
    ]


ALL = {"1/64": [0.1, 0.3, 0.2], "1/16": [0.01, 0.02], "1/8": [0.6, 0.5, 0.4], "1/4": [0.7] * 3}


@pytest.mark.parametrize(
    ("capacity", "expected"),
    [
        ("1/64", []),  # its neighbour has two trials
        ("1/16", ["kr@1/64 trial 1: 0.3", "kr@1/8 trial 0: 0.6"]),
        ("1/8", ["kr@1/4 trial 0: 0.7"]),
        ("1/4", ["kr@1/8 trial 0: 0.6"]),
    ],
)
def test_the_sizes_beside_lend_their_best(capacity: str, expected: list[str]) -> None:
    assert lent(studies_of(ALL), capacity) == expected


def test_no_size_lends_twice() -> None:
    studies = studies_of(ALL)
    first = lent(studies, "1/16")
    assert lent(studies, "1/16") == first, "they still wait"
    study = studies[TuningKey("kr", "1/16")]
    for _ in first:
        study.optuna.tell(study.optuna.ask(), 0.5)
    study.recount()
    between = {RATE: FloatDistribution(0.0, 1.0)}
    better = create_trial(params={RATE: 0.9}, distributions=between, value=0.9)
    studies[TuningKey("kr", "1/8")].optuna.add_trial(better)
    assert lent(studies, "1/16") == []


@pytest.mark.parametrize(
    ("own", "num_planned"),
    [
        ([], 20),  # the user's own settings come first
        ([0.01] * 10, 20),  # its first half is over
        ([0.3, 0.6], 20),  # both were tried
    ],
)
def test_nothing_is_lent_where_it_would_not_help(own: list[float], num_planned: int) -> None:
    assert lent(studies_of({**ALL, "1/16": own}), "1/16", num_planned) == []


def test_what_is_lent_is_part_of_the_plan() -> None:
    assert len(lent(studies_of({**ALL, "1/16": [0.01]}), "1/16", num_planned=2)) == 1
