"""Search spaces: what is read, and every mistake refused with one clear error."""

from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from krscale.config import load
from krscale.errors import UserError
from krscale.search.space import defaults_within, find_space, load_space


def space_file(folder: Path, text: str) -> str:
    path = folder / "space.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def read(folder: Path, text: str, methods: str = '["kr"]', num_taps: int = 6):
    path = space_file(folder, text)
    return load_space(load(None, [f"search.space='{path}'", f"search.methods={methods}"]), num_taps)


def test_reads_optuna_words(tmp_path: Path) -> None:
    space = read(
        tmp_path,
        """
        [common]
        "train.learning_rate" = { type = "float", low = 0.01, high = 0.1, log = true }
        [kr]
        "distill.granularity" = { type = "int", low = 1, high = "num_taps" }
        "distill.mixing" = { type = "categorical", choices = ["arithmetic", "geometric"] }
        """,
        methods='["plain", "kr"]',
        num_taps=7,
    )
    learning_rate = FloatDistribution(0.01, 0.1, log=True)
    assert space.by_method["plain"] == {"train.learning_rate": learning_rate}
    assert space.by_method["kr"] == {
        "train.learning_rate": learning_rate,
        "distill.granularity": IntDistribution(1, 7),
        "distill.mixing": CategoricalDistribution(("arithmetic", "geometric")),
    }


def test_shipped_space_is_found_by_name_and_valid() -> None:
    assert find_space("kr").name == "kr.toml"
    space = load_space(load(), num_taps=6)
    assert set(space.by_method) == {"plain", "kd", "kr"}
    assert "distill.sparsity" not in space.by_method["kd"]


def test_unknown_space_names_the_shipped_ones() -> None:
    with pytest.raises(UserError, match=r"unknown space.*'krr'.*Did you mean 'kr'"):
        load_space(load(None, ["search.space=krr"]), 6)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('"distill.sparsty" = { type = "float", low = 0, high = 0.5 }', "Did you mean 'distill.sp"),
        ('"data.seed" = { type = "int", low = 0, high = 5 }', "no such field to search"),
        ('"distill.sparsity" = { type = "float", low = 0.0, high = 1.5 }', "less than 1"),
        ('"distill.sparsity" = { type = "float", low = 0.5, high = 0.1 }', "distill.sparsity"),
        ('"distill.kr_weight" = { type = "float", low = 0.0, high = 1.0, log = true }', "low"),
        ('"distill.kr_weight" = { type = "flaot", low = 0.1, high = 1.0 }', "Did you mean 'float'"),
        ('"distill.kr_weight" = { type = "float", lo = 0.1, high = 1.0 }', "Did you mean 'low'"),
        ('"distill.kr_weight" = { type = "float", low = 0.1 }', "high"),
        ('"distill.kr_weight" = 3', "expected a table"),
        ('"distill.mixing" = { type = "categorical", choices = ["harmonic"] }', "geometric"),
    ],
)
def test_bad_field_is_refused(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, f"[kr]\n{line}\n")
    assert "space.toml" in str(caught.value)


def test_setting_of_another_method_is_refused(tmp_path: Path) -> None:
    text = '[kd]\n"distill.sparsity" = { type = "float", low = 0.0, high = 0.5 }\n'
    with pytest.raises(UserError, match="method 'kd' has no such setting"):
        read(tmp_path, text, methods='["kd"]')


def test_unknown_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown table 'krr'"):
        read(tmp_path, "[krr]\n")


def test_defaults_within_leaves_out_what_the_space_does_not_contain() -> None:
    distributions = {
        "train.learning_rate": FloatDistribution(0.01, 1.0, log=True),
        "distill.granularity": IntDistribution(1, 6),
        "distill.sparsity": FloatDistribution(0.6, 0.9),
    }
    found = defaults_within(load(), distributions)
    assert found == {"train.learning_rate": load().train.learning_rate}
