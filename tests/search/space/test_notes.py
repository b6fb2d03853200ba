"""Methods that a space hardly varies are named."""

from pathlib import Path

import pytest

from krscale.config import load
from krscale.methods import METHODS, POSTERIORS
from krscale.search.plan import describe_plan
from krscale.search.space.notes import notes_on_space
from krscale.search.space.space import find_space, load_space

TEXT = """
[common]
"train.learning_rate" = "default"
[kd]
"distill.kd_weight" = "default"
[kr]
"distill.sparsity" = "default"
"""


def notes(path: Path, *methods: str, num_trials: int = 8) -> list[str]:
    config = load(None, [f"search.space='{path}'", f"search.methods={list(methods)}"])
    return notes_on_space(load_space(config, 6), dict.fromkeys(methods, num_trials))


def test_a_method_without_a_table_is_said(tmp_path: Path) -> None:
    path = tmp_path / "space.toml"
    path.write_text(TEXT)
    assert notes(path, "plain", "kd", "dkd", "kr+dkd") == [
        f"dkd: only train.learning_rate is searched; {path} has no table [dkd]",
        f'kr+dkd: only what [kr] varies is searched; {path} has no table ["kr+dkd"]',
    ]
    two = ("search.methods=['dkd', 'kd']", "ladder.capacities=['1/4']")
    lines = describe_plan(load(None, (f"search.space={path}", *two))).splitlines()
    assert [line for line in lines if "no table" in line] == [
        f"  dkd: only train.learning_rate is searched; {path} has no table [dkd]"
    ]


def test_trials_that_are_all_the_same_are_said(tmp_path: Path) -> None:
    path = tmp_path / "space.toml"
    path.write_text('[kd]\n"distill.kd_weight" = { type = "float", low = 1, high = 1 }\n')
    same = "nothing is searched, so that all 8 trials of a size are the same"
    assert notes(path, "kd", "kr") == [
        f"kd: {same}; {path} varies none of its fields",
        f"kr: {same}; {path} has no table [kr]",
    ]
    assert notes(find_space("fixed"), "kd", num_trials=1) == []


@pytest.mark.parametrize("space", ["kr", "claims"])
def test_the_spaces_for_comparisons_have_a_table_of_every_method(space: str) -> None:
    """Fails if a method is compared with others for which more is searched."""
    combined = (f"kr+{term}" for term in POSTERIORS)
    assert notes(find_space(space), *METHODS, *combined) == []


def test_what_make_run_searches_stays_as_it_is() -> None:
    """Fails if runs that were begun cannot be continued."""
    described = load_space(load(None, ["search.space=kr"]), 6).describe()
    assert {method: sorted(fields) for method, fields in described.items()} == {
        "plain": ["train.learning_rate", "train.weight_decay"],
        "kd": [
            "distill.ce_weight",
            "distill.kd_weight",
            "distill.temperature",
            "train.learning_rate",
        ],
        "kr": [
            "distill.granularity",
            "distill.kr_weight",
            "distill.sparsity",
            "distill.temperature",
            "train.learning_rate",
        ],
    }
