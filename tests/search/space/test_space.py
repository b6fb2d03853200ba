"""Search spaces: what is read, and every mistake refused with one clear error."""

import os
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial

from krscale.config import load, search_ranges
from krscale.config.ranges import UsedWith
from krscale.errors import UserError
from krscale.methods import METHODS, method_settings
from krscale.search.space import unused
from krscale.search.space.check import check_space
from krscale.search.space.space import defaults_within, find_space, load_space

RANGE = '"distill.kr_weight" = { type = "float", low = 0.1, high = 1.0, %s }'


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


def test_default_is_the_range_that_the_field_declares(tmp_path: Path) -> None:
    space = read(
        tmp_path,
        """
        [kr]
        "train.weight_decay" = "default"
        "distill.granularity" = "default"
        "distill.mixing" = "default"
        "distill.sparsity" = { type = "default", when = { "distill.granularity" = { low = 2 } } }
        """,
        num_taps=7,
    )
    assert space.by_method["kr"] == {
        "train.weight_decay": FloatDistribution(1e-5, 5e-3, log=True),
        "distill.granularity": IntDistribution(1, 7),
        "distill.mixing": CategoricalDistribution(("arithmetic", "geometric")),
        "distill.sparsity": FloatDistribution(0.0, 0.9),
    }
    written = read(
        tmp_path,
        """
        [kr]
        "train.weight_decay" = { type = "float", low = 1e-5, high = 5e-3, log = true }
        "distill.granularity" = { type = "int", low = 1, high = "num_taps" }
        "distill.mixing" = { type = "categorical", choices = ["arithmetic", "geometric"] }
        "distill.sparsity" = { type = "float", low = 0.0, high = 0.9,
                               when = { "distill.granularity" = { low = 2 } } }
        """.replace(",\n", ", "),
        num_taps=7,
    )
    assert space.describe() == written.describe(), "a journal cannot tell the two apart"


def test_a_field_that_no_trial_would_use_is_refused(tmp_path: Path) -> None:
    line = '"distill.at_weight" = { type = "float", low = 0.3, high = 300, log = true }'
    with pytest.raises(UserError, match=r"at_weight: it is used with distill.at_reduction = 'sum'"):
        read(tmp_path, f"[at]\n{line}\n", methods='["at"]')
    both = f'[at]\n{line}\n"distill.at_reduction" = "default"\n'
    assert len(read(tmp_path, both, methods='["at"]').by_method["at"]) == 2
    path = space_file(tmp_path, f"[at]\n{line}\n")
    summed = [f"search.space='{path}'", "search.methods=['at']", "distill.at_reduction=sum"]
    assert list(load_space(load(None, summed), 6).by_method["at"]) == ["distill.at_weight"]


@pytest.mark.parametrize("name", ["kr", "claims"])
def test_attention_transfer_is_searched_in_both_forms(name: str) -> None:
    space = load_space(load(None, [f"search.space={name}", "search.methods=['at']"]), 6)
    fields = space.by_method["at"]
    assert fields["distill.at_reduction"] == CategoricalDistribution(("mean", "sum"))
    for reduction, weight, other in (
        ("mean", "at_mean_weight", "at_weight"), ("sum", "at_weight", "at_mean_weight")
    ):  # fmt: skip
        fixed = {path: distribution.low for path, distribution in fields.items()
                 if path != "distill.at_reduction"}  # fmt: skip
        trial = FixedTrial({**fixed, "distill.at_reduction": reduction})
        values = space.suggest("at", trial)
        assert f"distill.{weight}" in values
        assert f"distill.{other}" not in values
    published = load(None, ["distill.at_mean_weight=1000"])
    within = defaults_within(published, fields)
    assert (within["distill.at_reduction"], within["distill.at_mean_weight"]) == ("mean", 1000.0)


@pytest.mark.parametrize("path", search_ranges())
def test_every_declared_range_is_allowed_and_contains_the_default(
    tmp_path: Path, path: str
) -> None:
    term = path.removeprefix("distill.posterior.")
    name = path.removeprefix("distill.")
    methods = [f"kr+{term}"] if term != path else [*METHODS]
    [method, *_] = [m for m in methods if path.startswith("train.") or name in method_settings(m)]
    others = {"distill.at_weight": "at_reduction", "distill.where_schedule": "where_weight"}
    needed = f'"distill.{others[path]}" = "default"\n' if path in others else ""
    text = f'["{method}"]\n{needed}"{path}" = "default"\n'
    space = read(tmp_path, text, methods=f'["{method}"]')
    within = defaults_within(load(), space.by_method[method])
    assert path in within or path == "distill.granularity"  # its default is a level


def test_shipped_space_is_found_by_name_and_valid() -> None:
    assert find_space("kr").name == "kr.toml"
    space = load_space(load(), num_taps=6)
    assert set(space.by_method) == {"plain", "kd", "kr"}
    assert "distill.sparsity" not in space.by_method["kd"]


@pytest.mark.parametrize("name", ["krr", "KR", "kr.toml", "Search_spaces/Kr.toml"])
def test_unknown_space_names_the_nearest_shipped_one(name: str) -> None:
    with pytest.raises(UserError, match=rf"unknown space.*'{name}'.*Did you mean 'kr'"):
        load_space(load(None, [f"search.space={name}"]), 6)


LINE = '"distill.temperature" = "default"'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[kr]\ndistill.sparsity = "default"', 'kr: write "distill.sparsity" = ... with quotes'),
        (
            "[kr]\ndistill.sparsity = { low = 0, high = 1 }",
            'kr: write "distill.sparsity" = ... with quotes',
        ),
        (
            '[kr]\nstudent.options.num_blocks = { type = "int", low = 1, high = 2 }',
            'write "student.options.num_blocks" = ... with quotes',
        ),
        (
            '[kr]\n"distill.mixing" = { type = "default", when = { distill.granularity = [2] } }',
            'distill.mixing: when: write "distill.granularity" = ... with quotes',
        ),
        ("[common]\ntrain = 3", "common: train: no such field to search"),
        ('distill.sparsity = "default"', "a field of a space stands in a table, such as"),
        ('"distill.sparsity" = "default"', "a field of a space stands in a table, such as"),
        (f"[common]\n{LINE}", "common: distill.temperature: method 'plain' .*none at all.*: kd, "),
        (
            '[kr]\n"distill.sparsity" = { type = "float", low = 0, high = 1.5 }',
            "space.toml: kr: distill.sparsity: input should be less than 1",
        ),
        (
            '[kr]\n"distill.kr_weight" = { type = "float", low = 0, high = 1, step = 1e-300 }',
            "step: 1e-300 is too small for a range from 0 to 1: at most",
        ),
        (
            '[common]\n"train.gradient_accumulation" = { type = "int", low = 1, high = 128 }',
            r"common: train.gradient_accumulation: .*\(train.global_batch_size\) would be empty.$",
        ),
    ],
)
def test_a_mistake_is_said_once_with_its_table(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, text, methods='["plain", "kr"]')
    error = str(caught.value)
    assert "space.toml" in error
    assert len(error.splitlines()) == 1
    assert error.count("space.toml") == 1
    with pytest.raises(UserError, match=message):
        check_space(load(None, [f"search.space='{tmp_path / 'space.toml'}'"]))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pipe.toml", "pipe.toml: not a readable TOML file: .*named pipe"),
        ("folder.toml", "folder.toml: not a readable TOML file: .*a folder"),
        ("noise.toml", "noise.toml: not a readable TOML file: .*(utf|UTF)-8"),
        ("space.txt", "space.txt: the name of a file with a space ends in .toml"),
        ("gone.toml", "unknown space .neither a shipped name nor a file. '.*gone.toml'"),
        ("a" * 300, "a name of 300 bytes"),
    ],
)
def test_what_can_be_no_space_is_named(tmp_path: Path, name: str, message: str) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "noise.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "space.txt").touch()
    with pytest.raises(UserError, match=message):
        load_space(load(None, [f"search.space='{tmp_path / name}'"]), 6)


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
        ('"distill.kr_weight" = 3', 'expected "default", or a table'),
        ('"distill.kr_weight" = { type = {}, low = 0.1, high = 1.0 }', "unknown type '{}'. All"),
        (
            '"distill.kr_weight" = { type = [1], low = 0.1, high = 1.0 }',
            r"unknown type '\[1\]'. All",
        ),
        (RANGE % "step = inf", r"step: expected a finite number above 0 \(got inf\)"),
        (RANGE % "step = [1]", r"step: expected a finite number above 0 \(got \[1\]\)"),
        (RANGE % "step = 0", r"step: expected a finite number above 0 \(got 0\)"),
        (RANGE % "log = 1", r"log: expected true or false \(got 1\)"),
        (
            '"student.options.num_blocks" = { type = "int", low = 1, high = 1%s }' % ("0" * 400),
            'high: expected a finite number or "num_taps"',
        ),
        (
            '"student.options.num_blocks" = { type = "int", low = 1, high = 1%s }' % ("0" * 30),
            "high: expected a whole number of at most 9,007,199,254,740,992",
        ),
        (
            '"student.options.num_blocks" = { type = "int", low = 1.5, high = 3 }',
            "low: expected a whole number",
        ),
        ('"distill.mixing" = { type = "categorical", choices = [] }', "at least one value"),
        ('"distill.mixing" = { type = "categorical", choices = ["layer", "layer"] }', "twice"),
        (
            '"distill.kr_weight" = { type = "categorical", choices = [0.5, 1, "0.5"] }',
            "expected a number, without quotes",
        ),
        ('"train.nesterov" = { type = "float", low = 0, high = 1 }', "search. A space may vary"),
        ('"train.lr" = { type = "float", low = 0, high = 1 }', "Did you mean 'train.learning_rate"),
        ('"distill.sparsity" = { type = "float", low = 0.5, high = 0.1 }', "range is inverted"),
        ('"distill.kr_weight" = { type = "float", low = 0, high = 1, log = true }', "above 0"),
        ('"distill.kr_weight" = { type = "float", low = 0.1, high = inf }', "finite"),
        ('"distill.granularity" = { type = "int", low = 1, high = "taps" }', "num_taps"),
        ('"distill.sparsity" = { type = "float", low = 0, high = 0.7, step = 0.2 }', "divisible"),
        ('"train.num_epochs" = { type = "int", low = 1, high = 9 }', "not searched"),
        ('"train.num_epochs" = "default"', "not searched"),
        ('"distill.head_grid" = "default"', r"declares no range.*distill.kr_weight, distill.gran"),
        ('"student.options.num_blocks" = "default"', "declares no range"),
        ('"distill.sparsity" = "defalt"', 'expected "default", or a table'),
        ('"distill.sparsity" = { type = "defalt" }', "Did you mean 'default'"),
        ('"distill.sparsity" = { type = "default", high = 0.5 }', "no further keys .got high"),
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


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("krr", "unknown table 'krr'"),
        ('"kr+dkdd"', "Did you mean 'dkd'"),
        ('"kd+kr"', "cannot be combined"),
    ],
)
def test_unknown_table_is_refused(tmp_path: Path, table: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, f"[{table}]\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("common = 3\n", r"space.toml: common: expected a table of fields \(got 3\)"),
        ("[[kr]]\n", r"space.toml: kr: expected a table of fields \(got \[{}\]\)"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, text)


def test_a_field_of_any_section_may_be_used_with_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = {"train.ema_decay": (UsedWith("schedule", ("step",)),)}
    monkeypatch.setattr(unused, "used_with", lambda: needs)
    line = '"train.ema_decay" = { type = "float", low = 0.5, high = 0.9 }'
    with pytest.raises(UserError, match=r"train.schedule is 'cosine' in this experiment"):
        read(tmp_path, f"[kr]\n{line}\n")


def test_a_table_is_found_by_the_method_it_means(tmp_path: Path) -> None:
    """Fails if a table is passed over because its terms are in another order."""
    text = """
    ["kr+kd+dkd"]
    "distill.posterior.dkd" = { type = "float", low = 0.1, high = 2.0 }
    """
    space = read(tmp_path, text, methods='["kr+dkd+kd"]')
    assert list(space.by_method["kr+dkd+kd"]) == ["distill.posterior.dkd"]
    path = tmp_path / "space.toml"
    checked = check_space(load(None, [f"search.space='{path}'", "search.methods=['kr+dkd+kd']"]))
    assert list(checked.by_method) == ["kr+dkd+kd"], "one method, named in two ways"


def test_two_tables_of_one_method_are_refused(tmp_path: Path) -> None:
    text = """
    ["kr+kd+dkd"]
    "distill.posterior.dkd" = { type = "float", low = 0.1, high = 2.0 }
    ["kr+dkd+kd"]
    "distill.posterior.kd" = { type = "float", low = 0.1, high = 2.0 }
    """
    with pytest.raises(UserError, match=r"space.toml: the tables 'kr\+kd\+dkd' and 'kr\+dkd\+kd'"):
        read(tmp_path, text)


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
    # Two spaces vary a stored quantity, which the experiment must have, as they state at their top.
    varies_where = '"distill.where_weight" =' in find_space(name).read_text()
    stored = ["distill.where_weight=0.5"] if varies_where else []
    space = check_space(load(None, [f"search.space={name}", *stored]))
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


def test_positions_are_searched_where_they_are_stored_alone(tmp_path: Path) -> None:
    path = space_file(tmp_path, '[kr]\n"distill.where_weight" = "default"\n')
    settings = [f"search.space='{path}'", "search.methods=['kr']"]
    with pytest.raises(UserError, match=r"where_weight = 0.5: .*nothing is stored .*--set"):
        check_space(load(None, settings))
    space = check_space(load(None, [*settings, "distill.where_weight=1"]))
    searched = space.by_method["kr"]["distill.where_weight"]
    assert searched == CategoricalDistribution((0.0, 0.5, 1.0, 2.0, 4.0))


def test_what_decides_the_store_is_not_searched(tmp_path: Path) -> None:
    text = '[kr]\n"distill.probe_grid" = { type = "int", low = 1, high = 4 }\n'
    with pytest.raises(UserError, match="probe_grid: not searched: all trials share the store"):
        read(tmp_path, text, methods='["kr"]')


def test_a_field_that_one_of_several_others_needs(tmp_path: Path) -> None:
    line = '[kr]\n"distill.auxiliary_until" = "default"\n'
    path = space_file(tmp_path, line)
    constant = [f"search.space='{path}'", "search.methods=['kr']"]
    constant += ["distill.auxiliary_schedule=constant"]
    with pytest.raises(UserError, match=r"auxiliary_schedule is 'constant' in this experiment"):
        load_space(load(None, constant), 6)
    for more in ("where_schedule=falling", "auxiliary_schedule=coarsening"):
        assert load_space(load(None, [*constant, f"distill.{more}"]), 6).by_method["kr"]
