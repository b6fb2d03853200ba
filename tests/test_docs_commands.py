"""No page shows a command, a setting or an experiment that does not exist.

Nothing is run here; tests/test_docs_running.py runs the commands.
"""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from documents import CURRENT, ROOT, blocks, code, commands

from krscale.cli.app import COMMANDS, build_parser
from krscale.config import field_paths, load, validate
from krscale.errors import UserError

PAGES = pytest.mark.parametrize("document", CURRENT, ids=lambda path: str(path.relative_to(ROOT)))

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = set(PROJECT["optional-dependencies"])


def check(arguments: list[str]) -> None:
    """Parse as `krscale` does, and read the experiment that would be run."""
    try:
        options = build_parser().parse_args(arguments)
    except SystemExit as stopped:
        if stopped.code:  # not --help and --version
            raise AssertionError(f"refused: krscale {' '.join(arguments)}") from None
        return
    experiment = getattr(options, "experiment", None)
    shipped = experiment if experiment and (ROOT / experiment).is_file() else None
    # `=+8` extends a search by 8. The sum depends on the run, so this checks `=8`.
    settings = [setting.replace("=+", "=") for setting in getattr(options, "set", [])]
    load(ROOT / shipped if shipped else None, settings)


def check_toml(text: str) -> None:
    """Read an experiment, or a search space: tables of dotted fields."""
    content = tomllib.loads(text)
    if any("." in key for table in content.values() if isinstance(table, dict) for key in table):
        named = {key for table in content.values() for key in table}
        assert named <= set(field_paths())
        return
    validate(content, "the page")


@PAGES
def test_every_command_exists(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in commands(document.read_text(encoding="utf-8")):
        try:
            check(arguments)
        except (AssertionError, UserError) as error:
            said = capsys.readouterr().err
            pytest.fail(f"{document.name}: krscale {' '.join(arguments)}: {error}\n{said}")


@PAGES
def test_every_other_name_on_a_command_line_exists(document: Path) -> None:
    """Targets of make, programs of the repository, extras to install."""
    shown = "\n".join(code(document.read_text(encoding="utf-8")))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+)%?:", makefile, flags=re.M)) | {"bench-step"}
    assert set(re.findall(r"^(?:\$ )?make ([a-z-]+)", shown, flags=re.M)) <= targets
    programs = re.findall(r"python ((?:scripts|benchmarks)/\S+\.py)", shown)
    assert [name for name in programs if not (ROOT / name).is_file()] == []
    extras = re.findall(r"(?:krscale|'\.)\[([\w,]+)\]", document.read_text(encoding="utf-8"))
    assert {name for listed in extras for name in listed.split(",")} <= EXTRAS


@PAGES
def test_every_example_in_python_is_python(document: Path) -> None:
    for block in blocks(document.read_text(encoding="utf-8"), "python"):
        ast.parse(block)


@PAGES
def test_every_experiment_is_one(document: Path) -> None:
    for block in blocks(document.read_text(encoding="utf-8"), "toml"):
        check_toml(block)


@pytest.mark.parametrize("language", ["python", "toml", "console"])
def test_the_pages_have_examples_in_each_language(language: str) -> None:
    """Otherwise the tests above would pass although they find no block."""
    assert sum(len(blocks(page.read_text(encoding="utf-8"), language)) for page in CURRENT) > 5


def test_commands_are_found_wherever_they_stand() -> None:
    text = """Inline `krscale pick digits` and `krscale_other x`, and `krscale ui`.

```console
$ krscale tune my.toml \\
      --set name=x   # a comment
$ make run ARGS="--set name=digits-deep --set 'student.options={num_blocks = 2}'"
$ ray job submit --address http://x -- python -m krscale.teach a.toml
krscale: error: not a command
$ pip install 'krscale[hf]'
```

    krscale data check photos
"""
    assert commands(text) == [
        ["tune", "my.toml", "--set", "name=x"],
        ["tune", "--set", "name=digits-deep", "--set", "student.options={num_blocks = 2}"],
        ["teach", "a.toml"],
        ["data", "check", "photos"],
        ["pick", "digits"],
        ["ui", "--help"],
    ]


def test_pages_show_many_commands_and_every_one_that_there_is() -> None:
    shown = [c for page in CURRENT for c in commands(page.read_text(encoding="utf-8"))]
    assert len(shown) > 60
    assert {arguments[0] for arguments in shown} >= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_runs_as_a_module(name: str) -> None:
    package = ROOT / "krscale"
    assert any(file.is_file() for file in (package / f"{name}.py", package / name / "__main__.py"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["tun"],
        ["tune", "--no-such-option"],
        ["tune", "--set", "train.epochs=3"],
        ["tune", "--set", "train.num_epochs=many"],
        ["pick"],
        ["data", "look", "photos"],
    ],
)
def test_what_does_not_exist_is_noticed(arguments: list[str]) -> None:
    with pytest.raises((AssertionError, UserError)):
        check(arguments)


@pytest.mark.parametrize(
    "text", ["[train]\nepochs = 3", "[teacher]\nwidth = 'wide'", '[kr]\n"distill.nothing" = 1']
)
def test_experiments_that_would_be_refused_are_noticed(text: str) -> None:
    with pytest.raises((AssertionError, UserError)):
        check_toml(text)


def test_a_correct_experiment_is_taken() -> None:
    taken: dict[str, Any] = tomllib.loads("[train]\nnum_epochs = 3")
    assert validate(taken, "here").train.num_epochs == 3
