"""The time that a search took, from the times in its journal."""

from datetime import datetime, timedelta
from types import SimpleNamespace

import optuna
from optuna.trial import FrozenTrial, TrialState

from krscale.search.results import _cost
from krscale.search.studies.retries import Cause
from krscale.search.studies.study import FORBIDDEN

START = datetime(2026, 1, 1)


def trial(
    number: int, start: float | None, end: float | None, state: TrialState, **attrs: str
) -> FrozenTrial:
    def at(seconds: float | None) -> datetime | None:
        return None if seconds is None else START + timedelta(seconds=seconds)

    return FrozenTrial(
        number=number, trial_id=number, state=state, datetime_start=at(start),
        datetime_complete=at(end), value=0.5 if state is TrialState.COMPLETE else None, params={},
        distributions={}, user_attrs=attrs, system_attrs={}, intermediate_values={},
    )  # fmt: skip


def test_cost_adds_trainings_and_spans_the_search() -> None:
    first, second, empty = (optuna.create_study() for _ in range(3))
    first.add_trial(trial(0, 0.0, 10.0, TrialState.COMPLETE))
    first.add_trial(trial(1, 5.0, 7.5, TrialState.PRUNED))
    second.add_trial(trial(0, 100.0, 101.0, TrialState.FAIL))
    second.add_trial(trial(1, None, None, TrialState.WAITING))
    found = _cost(SimpleNamespace(optuna_studies={"a": first, "b": second, "c": empty}))
    assert found is not None
    assert (found.num_trials, found.trial_seconds, found.wall_seconds) == (3, 13.5, 101.0)
    assert _cost(SimpleNamespace(optuna_studies={"c": empty})) is None


def test_a_clock_that_is_put_back_takes_no_time_away() -> None:
    """Fails if a search cannot compute the time it took, and so never ends."""
    study = optuna.create_study()
    study.add_trial(trial(0, 7200.0, 3700.0, TrialState.COMPLETE))
    found = _cost(SimpleNamespace(optuna_studies={"a": study}))
    assert found is not None
    assert (found.num_trials, found.trial_seconds, found.wall_seconds) == (1, 0.0, 0.0)


def test_suggestions_that_broke_a_limit_are_no_trainings() -> None:
    study = optuna.create_study()
    study.add_trial(trial(0, 0.0, 1.0, TrialState.PRUNED, **{FORBIDDEN: "search.max_flops"}))
    study.add_trial(trial(1, 2.0, 10.0, TrialState.COMPLETE))
    study.add_trial(trial(2, 11.0, 19.0, TrialState.FAIL, **{FORBIDDEN: "another has won"}))
    study.add_trial(trial(3, 12.0, 13.0, TrialState.FAIL, interrupted="its worker was lost"))
    found = _cost(SimpleNamespace(optuna_studies={"a": study}))
    assert found is not None
    assert (found.num_trials, found.trial_seconds, found.wall_seconds) == (2, 9.0, 11.0)


def test_the_pause_after_a_killed_search_is_no_training() -> None:
    """A trial that ran then gets its end time from the next start, days later."""
    study = optuna.create_study()
    study.add_trial(trial(0, 0.0, 10.0, TrialState.COMPLETE))
    cut_short = {"interrupted": Cause.SEARCH.value}
    study.add_trial(trial(1, 5.0, 90_000.0, TrialState.FAIL, **cut_short))
    study.add_trial(trial(2, 90_001.0, 90_007.0, TrialState.COMPLETE))
    found = _cost(SimpleNamespace(optuna_studies={"a": study}))
    assert found is not None
    assert (found.num_trials, found.trial_seconds, found.wall_seconds) == (3, 16.0, 90_007.0)
