"""The user's own ladder: named students in `[[ladder.students]]`; each mistake is located."""

import re
from pathlib import Path

import pytest

from krscale.config import Experiment, load
from krscale.errors import UserError

SMALL = """
[[ladder.students]]
name = "small"
model = "my_nets:Small"
options = { depth = 2 }
weights = "small.pt"
"""
LARGE = """
[[ladder.students]]
name = "large"
model = "timm:resnet18"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "experiment.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_sizes_are_called_by_name(tmp_path: Path) -> None:
    found = load(write(tmp_path, SMALL + LARGE))
    assert found.sizes == ("small", "large")
    assert found.own_student is None
    chosen = load(write(tmp_path, SMALL + LARGE), ["distill.capacity=large"])
    assert chosen.any_student.model == "timm:resnet18"
    assert chosen.own_student is chosen.ladder.students[1]


def test_without_it_the_sizes_are_shares() -> None:
    found = load()
    assert found.sizes == found.ladder.capacities
    assert found.any_student is found.student


@pytest.mark.parametrize(
    ("text", "override", "message"),
    [
        (SMALL + "wieghts = 'x'", "", r"ladder.students: table 1, wieghts: .*mean 'weights'"),
        (SMALL + SMALL, "", r"ladder\.students: 'small' is named twice"),
        (SMALL + SMALL.replace("small", "Small"), "", r"'small' and 'Small' are the same"),
        (SMALL.replace('"small"', '"1/4"'), "", r"table 1, name: string should match"),
        (SMALL + "width = 0", "", r"table 1, width: .*greater than or equal to 1"),
        (
            SMALL,
            "distill.capacity=smal",
            r"'smal' is no student .*one of small or",
        ),
        ("", "distill.capacity=small", r"'small' is no student .*allowed: a share such as"),
        ("", "ladder.students=['resnet']", r"expected a list of tables, each written \[\[ladder"),
        ("", "ladder.students=resnet", r"expected a list of tables"),
        ("", "ladder.students=['a', 'b']", r"its keys below \(got 'a'\)"),
        (SMALL + "preprocessing = {maen = 1}", "", r"table 1, .*mean 'preprocessing\.mean'"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(write(tmp_path, text), [override] if override else [])
    assert len(str(caught.value).splitlines()) == 1


def test_the_examples_of_the_document_are_experiments(tmp_path: Path) -> None:
    document = Path(__file__).parents[2] / "docs" / "networks.md"
    examples = re.findall(r"```toml\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) >= 3
    assert [load(write(tmp_path, text)).name for text in examples] == ["digits"] * len(examples)


@pytest.mark.parametrize("model", ["my_nets:Net", "timm:resnet18", "hf:folder"])
@pytest.mark.parametrize("table", ["teacher", "student"])
def test_options_of_the_zoo_are_no_default_for_other_networks(table: str, model: str) -> None:
    assert getattr(load(None, [f"{table}.model={model}"]), table).options == {}
    given = load(None, [f"{table}.model={model}", f"{table}.options={{depth = 2}}"])
    assert getattr(given, table).options == {"depth": 2}
    assert getattr(Experiment(), table).options
