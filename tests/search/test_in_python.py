"""Errors of `krscale.search` name its arguments instead of the options of the command."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import krscale
from krscale.config import load, validate
from krscale.data.seen import Fault, UnreadableError
from krscale.errors import DamagedFileError, UserError
from krscale.search.in_python import errors_in_python, in_python

ROOT = Path(krscale.__file__).parent
REACHED = ("search", "runs", "report/choice.py", "setup", "data", "cluster", "store", "training")
"""Modules whose errors `krscale.search` and its result can raise."""
OF_COMMANDS = {
    "runs/distill.py",  # of `krscale distill` alone
    "runs/aside.py",
    "search/studies/extending.py",  # of `--set search.trials_per_size=+8`
    "search/in_python.py",
}
"""Modules whose errors no caller from Python gets."""


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("Choose another name (--set name=...).", "Choose another name (name=...)."),
        (
            "go on with --new-data, which puts aside; --new-space goes on",
            "go on with new_data=True, which puts aside; new_space=True goes on",
        ),
        (
            "--set views.flip=False --set views.sizes=[1, 2] goes on",
            "settings={'views.flip': False, 'views.sizes': [1, 2]} goes on",
        ),
        (
            "e.g. --set search.trials_per_size=4, or choose (--set name=...).",
            "e.g. num_trials=4, or choose (name=...).",
        ),
        ("Use --set train.optimizer=adamw.", "Use settings={'train.optimizer': 'adamw'}."),
        ("(--set train.learning_rate=0.001)", "(settings={'train.learning_rate': 0.001})"),
        (
            "picked with --max-params 10 --max-latency-ms 0.4567 --min-accuracy 0.91.",
            "picked with max_parameters=10, max_latency_ms=0.4567, min_accuracy=0.91.",
        ),
        ("`krscale sync runs/a --uri URI` and `krscale tune --set name=b`", None),
        ("`krscale store check RUN --repair` rebuilds", None),
        ("the rate of --settings is none", None),
    ],
)
def test_what_is_written_for_a_command_is_said_for_python(
    written: str, expected: str | None
) -> None:
    assert in_python(written) == (written if expected is None else expected)


def test_an_error_stays_of_its_kind_and_others_pass() -> None:
    with pytest.raises(DamagedFileError, match=r"new_data=True$") as caught, errors_in_python():
        raise DamagedFileError("--new-data")
    assert isinstance(caught.value.__cause__, DamagedFileError)
    fault = Fault("train", 3, "3.png", "damaged")
    with pytest.raises(UnreadableError, match=r"^new_space=True$") as unread, errors_in_python():
        raise UnreadableError("--new-space", [fault])
    assert unread.value.faults == (fault,), "of an error that is made of more than its text"
    same = UserError("nothing of commands")
    with pytest.raises(UserError) as passed, errors_in_python():
        raise same
    assert passed.value is same


def test_an_unknown_key_of_a_table_is_said_without_a_command() -> None:
    with pytest.raises(UserError) as caught, errors_in_python():
        validate({"teacher": {"modle": "resnet"}}, "search")
    expected = "search: teacher.modle: unknown key 'teacher.modle'. Did you mean 'teacher.model'?"
    assert str(caught.value) == expected


def options_in(path: Path) -> list[str]:
    """Return the options of commands that a module's strings name, apart from docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
    ]
    return [o for text in texts for o in re.findall(r"--[a-z][a-z-]+", text)]


def test_every_option_that_an_error_names_has_its_argument() -> None:
    """Add a new option to `in_python`, or name it within its whole command and list it here."""
    known = {"--set", "--new-data", "--new-space", "--max-params", "--max-flops",
             "--max-latency-ms", "--min-accuracy"}  # fmt: skip
    of_commands = {"--repair", "--refit", "--format", "--output", "--storage-path", "--address",
                   "--head", "--untracked-files", "--porcelain", "--experiment"}  # fmt: skip
    for place in REACHED:
        paths = [ROOT / place] if place.endswith(".py") else sorted((ROOT / place).rglob("*"))
        assert paths, place
        for path in paths:
            if path.suffix == ".py" and str(path.relative_to(ROOT)) not in OF_COMMANDS:
                assert set(options_in(path)) <= known | of_commands, path


def test_search_says_it_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise UserError("the data has changed. Choose another name (--set name=...) or --new-data.")

    monkeypatch.setattr("krscale.search.calling.run_session", refuse)
    with pytest.raises(UserError, match=r"\(name=\.\.\.\) or new_data=True\.$"):
        krscale.search(load(None, [f"storage_path={tmp_path}"]))
