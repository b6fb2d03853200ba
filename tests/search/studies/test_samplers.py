"""Samplers by name, what they learn from pruned trials, and grids."""

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from krscale.config import SearchConfig, load
from krscale.errors import UserError
from krscale.search.space.space import SearchSpace, load_space
from krscale.search.studies import samplers
from krscale.search.studies.samplers import (
    EXPLORE_EVERY,
    grid,
    is_used_up,
    make_sampler,
    num_grid_points,
    num_planned,
)

X = FloatDistribution(0.0, 1.0)
SPACE = SearchSpace("space.toml", {"plain": {"x": X, "n": IntDistribution(1, 3)}})
STEPS = SearchSpace(
    "space.toml",
    {"plain": {"x": FloatDistribution(0.0, 1.0, step=0.5), "n": IntDistribution(1, 2)}},
)


def config(**changes: object) -> SearchConfig:
    return SearchConfig.model_validate(changes)


def ended(x: float, value: float, state: TrialState) -> optuna.trial.FrozenTrial:
    return create_trial(
        state=state,
        value=value if state is TrialState.COMPLETE else None,
        params={"x": x, "n": 2},
        distributions=dict(SPACE.by_method["plain"]),
        intermediate_values={1: value},
    )


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_pruned_trial_does_not_pose_as_a_finished_one(sampler: str) -> None:
    """In early epochs large x looks best; at the end only small x is good."""
    study = optuna.create_study(
        direction="maximize", sampler=make_sampler(config(sampler=sampler), SPACE, "plain", 0)
    )
    for i in range(8):
        study.add_trial(ended(0.15 + 0.02 * i, 0.5 - 0.01 * i, TrialState.COMPLETE))
        study.add_trial(ended(0.85 + 0.01 * i, 0.9, TrialState.PRUNED))
    near = 0
    for _ in range(10):
        trial = study.ask()
        near += SPACE.suggest("plain", trial)["x"] < 0.6
        study.tell(trial, state=TrialState.FAIL)
    assert near >= 8


def test_tpe_does_learn_from_pruned_trials() -> None:
    """If no trial has completed, it follows those that were stopped latest and were best."""
    study = optuna.create_study(
        direction="maximize", sampler=make_sampler(config(), SPACE, "plain", 0)
    )
    for i in range(40):
        study.add_trial(ended(0.025 * i, -abs(0.025 * i - 0.2), TrialState.PRUNED))
    near = 0
    for _ in range(20):
        trial = study.ask()
        near += abs(SPACE.suggest("plain", trial)["x"] - 0.2) < 0.1
        study.tell(trial, state=TrialState.FAIL)
    assert near >= 12, "one in five would by chance"


def test_tpe_that_has_settled_still_looks_elsewhere_now_and_then() -> None:
    """Fails if a study cannot leave the corner where its first trials were best."""
    study = optuna.create_study(
        direction="maximize", sampler=make_sampler(config(), SPACE, "plain", 0)
    )
    for i in range(200):
        study.add_trial(ended(0.005 * i, -abs(0.005 * i - 0.2), TrialState.COMPLETE))
    found: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(200):
        trial = study.ask()
        explores = trial.number % EXPLORE_EVERY == EXPLORE_EVERY - 1
        found[explores].append(SPACE.suggest("plain", trial)["x"])
        study.tell(trial, state=TrialState.FAIL)
    assert len(found[True]) == 20
    assert max(found[False]) - min(found[False]) < 0.4
    assert min(found[True]) < 0.15
    assert max(found[True]) > 0.85


def test_trials_at_random_follow_conditions_too() -> None:
    experiment = load(None, ["search.space=kr_plus_posterior"])
    space = load_space(experiment, 6)
    conditional = [method for method in space.by_method if space.is_conditional(method)]
    assert conditional
    for method in conditional:
        sampler = make_sampler(experiment.search, space, method, 0)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for number in range(3 * EXPLORE_EVERY):
            trial = study.ask()
            values = space.suggest(method, trial)
            for path in values:
                assert all(c.holds(values) for c in space.conditions_of(method, path))
            study.tell(trial, number)


@pytest.mark.parametrize("name", ["tpe", "gp", "cmaes", "nsgaii", "random"])
def test_same_seed_same_suggestions(name: str) -> None:
    def suggestions() -> list[float]:
        sampler = make_sampler(config(sampler=name), SPACE, "plain", 3)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for _ in range(EXPLORE_EVERY + 1):
            trial = study.ask()
            study.tell(trial, SPACE.suggest("plain", trial)["x"])
        return [trial.params["x"] for trial in study.trials]

    assert suggestions() == suggestions()


def test_grid_visits_every_point_once() -> None:
    sampler = make_sampler(config(sampler="grid"), STEPS, "plain", 0)
    study = optuna.create_study(sampler=sampler)
    assert num_grid_points(study) == 6
    for _ in range(6):
        assert not is_used_up(study)
        trial = study.ask()
        study.tell(trial, STEPS.suggest("plain", trial)["x"])
    assert is_used_up(study)
    assert len({(t.params["x"], t.params["n"]) for t in study.trials}) == 6


@given(low=st.integers(0, 30), step=st.integers(1, 30), count=st.integers(1, 12))
def test_every_point_of_a_grid_lies_in_its_range(low: int, step: int, count: int) -> None:
    """Also in tenths, hundredths and thousandths: in floats, 0.1 + 2 * 0.1 is more than 0.3."""
    for unit in (10, 100, 1000):
        high = low + step * (count - 1)
        x = FloatDistribution(low / unit, high / unit, step=step / unit)
        (values,) = grid(SearchSpace("space.toml", {"plain": {"x": x}}), "plain").values()
        assert len(values) == round((x.high - x.low) / x.step) + 1
        assert all(x._contains(value) for value in values)


def test_a_grid_has_no_more_trials_than_points() -> None:
    for wanted, planned in ((4, 4), (6, 6), (8, 6)):
        assert (
            num_planned(config(sampler="grid", trials_per_size=wanted), STEPS, "plain") == planned
        )
    assert num_planned(config(trials_per_size=8), STEPS, "plain") == 8


def test_grid_refuses_what_has_no_finite_number_of_values() -> None:
    with pytest.raises(UserError, match=r"'grid' needs a finite number.*space.toml: x"):
        make_sampler(config(sampler="grid"), SPACE, "plain", 0)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"'cmaes' needs the package cmaes.*krscale\[samplers\]"):
        make_sampler(config(sampler="cmaes"), SPACE, "plain", 0)
