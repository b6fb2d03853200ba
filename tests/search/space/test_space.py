"""Search spaces: what is read, and every mistake refused with one clear error."""

from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from krscale.config import load
from krscale.errors import UserError
from krscale.search.space.check import check_space
from krscale.search.space.space import defaults_within, find_space, load_space


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
        ('"distill.mixing" = { type = "categorical", choices = [] }', "at least one value"),
        ('"distill.mixing" = { type = "categorical", choices = ["layer", "layer"] }', "twice"),
        ('"distill.sparsity" = { type = "float", low = 0.5, high = 0.1 }', "range is inverted"),
        ('"distill.kr_weight" = { type = "float", low = 0, high = 1, log = true }', "above 0"),
        ('"distill.kr_weight" = { type = "float", low = 0.1, high = inf }', "finite"),
        ('"distill.granularity" = { type = "int", low = 1, high = "taps" }', "num_taps"),
        ('"distill.sparsity" = { type = "float", low = 0, high = 0.7, step = 0.2 }', "divisible"),
        ('"train.num_epochs" = { type = "int", low = 1, high = 9 }', "not searched"),
        ('"distill.posterior.dkdd" = { type = "float", low = 0, high = 1 }', "posterior.dkd'"),
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


COMBINED = """
[kr]
"distill.sparsity" = { type = "float", low = 0.0, high = 0.9 }
"distill.kr_weight" = { type = "float", low = 0.3, high = 10.0, log = true }
["kr+dkd"]
"distill.kr_weight" = { type = "float", low = 0.1, high = 1.0 }
"distill.posterior.dkd" = { type = "float", low = 0.1, high = 2.0, log = true }
"distill.dkd_nontarget_weight" = { type = "float", low = 1.0, high = 8.0 }
"""


def test_a_combination_takes_the_table_of_kr_and_its_own(tmp_path: Path) -> None:
    space = read(tmp_path, COMBINED, methods='["kr", "kr+dkd", "kr+dist"]')
    sparsity, weight = FloatDistribution(0.0, 0.9), FloatDistribution(0.3, 10.0, log=True)
    alone = {"distill.sparsity": sparsity, "distill.kr_weight": weight}
    assert space.by_method["kr"] == alone
    assert space.by_method["kr+dist"] == alone
    assert space.by_method["kr+dkd"] == {
        "distill.sparsity": sparsity,
        "distill.kr_weight": FloatDistribution(0.1, 1.0),
        "distill.posterior.dkd": FloatDistribution(0.1, 2.0, log=True),
        "distill.dkd_nontarget_weight": FloatDistribution(1.0, 8.0),
    }
    assert defaults_within(load(), space.by_method["kr+dkd"])["distill.posterior.dkd"] == 1.0


def test_the_weight_of_a_term_is_a_setting_of_its_combination_alone(tmp_path: Path) -> None:
    line = '"distill.posterior.dkd" = { type = "float", low = 0.1, high = 2.0 }\n'
    for table, method in (("kr", "kr"), ('"kr+dist"', "kr+dist")):
        with pytest.raises(UserError, match="no such setting"):
            read(tmp_path, f"[{table}]\n{line}", methods=f'["{method}"]')


@pytest.mark.parametrize("table", ["krr", '"kr+dkdd"', '"kd+kr"'])
def test_unknown_table_is_refused(tmp_path: Path, table: str) -> None:
    with pytest.raises(UserError, match=r"unknown table 'krr'|Did you mean 'dkd'|cannot be comb"):
        read(tmp_path, f"[{table}]\n")


def test_defaults_within_leaves_out_what_the_space_does_not_contain() -> None:
    distributions = {
        "train.learning_rate": FloatDistribution(0.01, 1.0, log=True),
        "distill.granularity": IntDistribution(1, 6),
        "distill.sparsity": FloatDistribution(0.6, 0.9),
    }
    found = defaults_within(load(), distributions)
    assert found == {"train.learning_rate": load().train.learning_rate}


def test_all_mistakes_are_told_at_once_and_each_once(tmp_path: Path) -> None:
    text = """
        [common]
        "train.learning_rat" = { type = "float", low = 0.1, high = 0.2 }
        [kr]
        "distill.sparsity" = { type = "float", low = 0.5, high = 0.1 }
    """
    with pytest.raises(UserError) as caught:
        read(tmp_path, text, methods='["plain", "kr"]')
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "train.learning_rate" in lines[0]
    assert "inverted" in lines[1]


def test_extreme_values_are_tried_with_what_their_conditions_require(tmp_path: Path) -> None:
    text = """
        [kr]
        "student.model" = { type = "categorical", choices = ["resnet", "mobilenet"] }
        "student.options.expansion" = { type = "int", low = 2, high = 6,
                                        when = { "student.model" = ["mobilenet"] } }
    """.replace(",\n", ", ")
    path = space_file(tmp_path, text)
    tried = []
    config = load(None, [f"search.space='{path}'", "search.methods=['kr']"])
    load_space(config, 6, lambda changed: tried.append(changed.student))
    assert [(s.model, s.options.get("expansion")) for s in tried] == [
        ("resnet", None), ("mobilenet", None), ("mobilenet", 2), ("mobilenet", 6),
    ]  # fmt: skip


@pytest.mark.parametrize("name", sorted(p.stem for p in find_space("kr").parent.glob("*.toml")))
def test_every_shipped_space_fits_the_default_experiment(name: str) -> None:
    space = check_space(load(None, [f"search.space={name}"]))
    searched = [bool(fields) for fields in space.by_method.values()]
    # `fixed` is the one space that varies nothing, on purpose.
    assert not any(searched) if name == "fixed" else all(searched)


def test_what_networks_refuse_is_refused_before_anything_trains(tmp_path: Path) -> None:
    text = '[kr]\n"distill.granularity" = { type = "int", low = 1, high = 60 }\n'
    path = space_file(tmp_path, text)
    with pytest.raises(UserError, match=r"distill.granularity = 60: .*the teacher has 6 taps"):
        check_space(load(None, [f"search.space='{path}'", "search.methods=['kr']"]))
    text = '[kr]\n"student.options.num_block" = { type = "int", low = 1, high = 2 }\n'
    path = space_file(tmp_path, text)
    with pytest.raises(UserError, match="Did you mean 'num_blocks'"):
        check_space(load(None, [f"search.space='{path}'", "search.methods=['kr']"]))
