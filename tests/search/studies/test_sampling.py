"""Samplers and early stopping by name, and what a pruned trial teaches."""

from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from krscale.config import SearchConfig, load
from krscale.errors import UserError
from krscale.search.space.space import SearchSpace, load_space
from krscale.search.studies import sampling
from krscale.search.studies.sampling import (
    EXPLORE_EVERY,
    expected_share,
    make_pruner,
    make_sampler,
    milestones,
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
    """Early on large x looks best; to the end only small x was good."""
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
    """When nothing has ended yet, what was stopped last and best shows the way."""
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
    assert sampling.num_grid_points(study) == 6
    for _ in range(6):
        trial = study.ask()
        study.tell(trial, STEPS.suggest("plain", trial)["x"])
    assert len({(t.params["x"], t.params["n"]) for t in study.trials}) == 6


def test_grid_refuses_what_has_no_finite_number_of_values() -> None:
    with pytest.raises(UserError, match=r"'grid' needs a finite number.*space.toml: x"):
        make_sampler(config(sampler="grid"), SPACE, "plain", 0)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"'cmaes' needs the package cmaes.*krscale\[samplers\]"):
        make_sampler(config(sampler="cmaes"), SPACE, "plain", 0)


def test_median_stops_the_worse_half_after_grace_and_enough_trials(tmp_path: Path) -> None:
    settings = config(early_stopping="median", grace_epochs=2, trials_per_size=12)
    study = optuna.create_study(direction="maximize", pruner=make_pruner(settings, 4))

    def stops(accuracy: float, epoch: int) -> bool:
        trial = study.ask()
        trial.report(accuracy, epoch)
        stop = trial.should_prune()
        study.tell(trial, accuracy, state=TrialState.COMPLETE)
        return stop

    assert [stops(accuracy, 2) for accuracy in (0.5, 0.1, 0.9)] == [False] * 3, "too few to judge"
    assert stops(0.4, 2)
    assert not stops(0.6, 2)
    assert not stops(0.0, 1), "still in its grace epochs"


def test_reports_do_not_run_past_a_decision() -> None:
    assert milestones(config(early_stopping="asha", grace_epochs=2), 16) == (2, 4, 8)
    assert milestones(config(early_stopping="median", grace_epochs=2), 6) == (2, 3, 4, 5)
    assert milestones(config(early_stopping="none"), 16) == ()


def test_the_share_of_its_epochs_that_a_trial_is_expected_to_get():
    # 4 epochs for all, 4 more for a half, 4 more for a quarter.
    asha = config(early_stopping="asha", grace_epochs=4, reduction_factor=2)
    assert expected_share(asha, 12) == pytest.approx(7 / 12)
    assert expected_share(asha, 4) == 1.0, "its grace is all there is"
    assert expected_share(asha, 3) == 1.0
    thirds = config(early_stopping="asha", grace_epochs=1, reduction_factor=3)
    assert expected_share(thirds, 9) == pytest.approx((1 + 2 / 3 + 6 / 9) / 9)
    # A third for all, and half of the rest for those in the middle.
    assert expected_share(config(early_stopping="median", grace_epochs=4), 12) == pytest.approx(
        2 / 3
    )
    assert expected_share(config(early_stopping="none"), 12) == 1.0
