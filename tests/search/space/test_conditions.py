"""Conditional fields: which trials search them, and which conditions are refused."""

from pathlib import Path

import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FixedTrial

from krscale.config import load
from krscale.errors import UserError
from krscale.search.space.conditions import Condition, allowed_values
from krscale.search.space.space import SearchSpace, load_space

GRANULARITY = '"distill.granularity" = { type = "int", low = 1, high = "num_taps" }'
MIXING = '"distill.mixing" = { type = "categorical", choices = ["arithmetic", "geometric"]'


def read(folder: Path, *lines: str) -> SearchSpace:
    path = folder / "space.toml"
    path.write_text("[kr]\n" + "\n".join(lines), encoding="utf-8")
    return load_space(load(None, [f"search.space='{path}'", "search.methods=['kr']"]), 6)


def sparsity(when: str) -> str:
    return f'"distill.sparsity" = {{ type = "float", low = 0.0, high = 0.9, when = {{ {when} }} }}'


@pytest.mark.parametrize(
    ("when", "searched_at"),
    [
        ('"distill.granularity" = [2, 3]', {2, 3}),
        ('"distill.granularity" = { low = 4 }', {4, 5, 6}),
        ('"distill.granularity" = { high = 2 }', {1, 2}),
        ('"distill.granularity" = { low = 2, high = "num_taps" }', {2, 3, 4, 5, 6}),
    ],
)
def test_a_field_is_searched_where_its_condition_holds(
    tmp_path: Path, when: str, searched_at: set[int]
) -> None:
    # Written before the field it depends on: the order of the file does not matter.
    space = read(tmp_path, sparsity(when), GRANULARITY)
    for granularity in range(1, 7):
        fixed = {"distill.granularity": granularity, "distill.sparsity": 0.25}
        values = space.suggest("kr", FixedTrial(fixed))
        assert ("distill.sparsity" in values) == (granularity in searched_at)
    assert space.is_conditional("kr")


def test_a_chain_is_searched_only_when_all_of_it_is(tmp_path: Path) -> None:
    space = read(
        tmp_path,
        sparsity('"distill.mixing" = ["geometric"]'),
        MIXING + ', when = { "distill.granularity" = { low = 2 } } }',
        GRANULARITY,
    )
    fixed = {"distill.granularity": 1, "distill.mixing": "geometric", "distill.sparsity": 0.1}
    assert space.suggest("kr", FixedTrial(fixed)) == {"distill.granularity": 1}
    assert len(space.suggest("kr", FixedTrial({**fixed, "distill.granularity": 2}))) == 3


def test_samplers_see_no_value_of_a_field_that_is_not_searched(tmp_path: Path) -> None:
    space = read(tmp_path, GRANULARITY, sparsity('"distill.granularity" = { low = 4 }'))
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=4))
    for _ in range(30):
        trial = study.ask()
        values = space.suggest("kr", trial)
        assert trial.params == values
        assert ("distill.sparsity" in values) == (values["distill.granularity"] >= 4)
        study.tell(
            trial, abs(values["distill.granularity"] - 5) + values.get("distill.sparsity", 1)
        )
    assert study.best_params["distill.granularity"] >= 4


def test_a_condition_is_part_of_what_the_space_says(tmp_path: Path) -> None:
    space = read(tmp_path, GRANULARITY, sparsity('"distill.granularity" = [2, 3]'))
    text = space.describe()["kr"]["distill.sparsity"]
    assert text.endswith("when distill.granularity in [2, 3]")


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ('"distill.granularty" = [2]', "Did you mean 'distill.granularity'"),
        ('"distill.temperature" = [2.0]', "unknown field in when"),
        ('"distill.granularity" = [2, 9]', "it is never 9; its range is 1 .. 6"),
        ('"distill.granularity" = { low = 7 }', "it is never 7"),
        ('"distill.granularity" = { low = 3, high = 2 }', "inverted"),
        ('"distill.granularity" = { low = 2.2, high = 2.8 }', "it is never 2.2 .. 2.8"),
        ('"distill.head_grid" = { low = 2, high = 2 }', r"it is never 2 .. 2; .* 1 .. 7, step 2"),
        ('"distill.head_grid" = [3, 4]', "it is never 4"),
        ('"distill.auxiliary_until" = { low = 0.62, high = 0.68 }', "it is never 0.62 .. 0.68"),
        ('"distill.auxiliary_until" = [0.55]', "it is never 0.55"),
        ('"distill.kr_weight" = [1.5]', "hardly ever exactly 1.5: give a range"),
        (
            '"distill.mixing" = ["geometric"], "distill.granularity" = { high = 2 }',
            "these never hold together: distill.granularity <= 2 and distill.granularity >= 3",
        ),
        ('"distill.granularity" = { lo = 3 }', "Did you mean 'low'"),
        ('"distill.granularity" = 3', "expected a list of values"),
        ('"distill.mixing" = { low = 1 }', "it has choices"),
        ('"distill.sparsity" = { low = 0.1 }', "circle"),
        ("", "when: expected a table"),
    ],
)
def test_a_condition_that_makes_no_sense_is_refused(
    tmp_path: Path, when: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(
            tmp_path,
            GRANULARITY,
            MIXING + ', when = { "distill.granularity" = { low = 3 } } }',
            '"distill.head_grid" = { type = "int", low = 1, high = 7, step = 2 }',
            '"distill.auxiliary_until" = { type = "float", low = 0.5, high = 0.9, step = 0.1 }',
            '"distill.kr_weight" = "default"',
            sparsity(when),
        )
    assert "space.toml" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_circle_names_its_fields(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"circle: .*granularity.*sparsity|circle: .*sparsity.*gran"
    ):
        read(
            tmp_path,
            '"distill.granularity" = { type = "int", low = 1, high = 6, '
            'when = { "distill.sparsity" = { low = 0.1 } } }',
            sparsity('"distill.granularity" = [2]'),
        )


def test_conditions_on_one_field_are_met_together(tmp_path: Path) -> None:
    """Fails if a value is tried that one of them excludes."""
    tried = []
    path = tmp_path / "space.toml"
    lines = [
        GRANULARITY,
        MIXING + ', when = { "distill.granularity" = { low = 3 } } }',
        sparsity('"distill.mixing" = ["geometric"], "distill.granularity" = { low = 2 }'),
    ]
    path.write_text("[kr]\n" + "\n".join(lines))
    config = load(None, [f"search.space='{path}'", "search.methods=['kr']"])
    load_space(config, 6, lambda changed: tried.append(changed.distill))
    assert [d.granularity for d in tried if d.mixing == "geometric"] == [3, 3, 3]


def test_a_step_is_the_number_that_is_written() -> None:
    assert Condition("x", choices=(0.3,)).holds({"x": 3 * 0.1})
    assert not Condition("x", choices=(0.3,)).holds({"x": 0.4})


@pytest.mark.parametrize(
    ("conditions", "distribution", "expected"),
    [
        ([Condition("x", low=2.2)], IntDistribution(1, 6), [3, 6]),
        ([Condition("x", high=5)], IntDistribution(1, 7, step=3), [1, 4]),
        ([Condition("x", low=0.3, high=0.5)], FloatDistribution(0.0, 1.0), [0.3, 0.5]),
        ([Condition("x", low=0.3)], FloatDistribution(0.0, 0.5, step=0.25), [0.5]),
        ([Condition("x", choices=(0.3, 0.6))], FloatDistribution(0.0, 0.9, step=0.1), [0.3, 0.6]),
        ([Condition("x", choices=(2, 3)), Condition("x", low=3)], IntDistribution(1, 6), [3]),
        ([Condition("x", low=4), Condition("x", high=3)], IntDistribution(1, 6), []),
        ([], CategoricalDistribution(("a", "b")), ["a", "b"]),
    ],
)
def test_values_for_which_conditions_hold(
    conditions: list[Condition], distribution: BaseDistribution, expected: list[object]
) -> None:
    assert allowed_values(conditions, distribution) == expected
