"""A command that needs another folder says what the given one is, and how to go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from krscale.cli.app import main
from krscale.config import load
from krscale.errors import UserError
from krscale.files import write_json
from krscale.runs.kinds import require_folder, require_run, require_search

SPACE = {"space": {"kr": {}}}


def begin(storage: Path, name: str, bound: object, *files: str, capacity: str = "1/4") -> Path:
    """Make the folder of a run as `run_folder` begins it, with further files."""
    own = [] if capacity == "1/4" else [f"ladder.students=[{{name = '{capacity}'}}]"]
    settings = [f"storage_path={storage}", f"name={name}", f"distill.capacity={capacity}"]
    experiment = load(None, [*settings, *own])
    folder = storage / name
    folder.mkdir()
    content = {"experiment": experiment.model_dump(mode="json"), "bound": bound}
    write_json(folder / "experiment.json", content)
    for file in files:
        (folder / file).write_text("")
    return folder


def search(storage: Path) -> Path:
    return begin(storage, "search", SPACE, "journal.log")


def search_before_its_trials(storage: Path) -> Path:
    return begin(storage, "begun", SPACE)


def single(storage: Path) -> Path:
    return begin(storage, "single", {}, "student.json", "student.safetensors")


def single_of_a_name(storage: Path) -> Path:
    return begin(storage, "named", {}, "student.json", capacity="tiny")


def unfinished_single(storage: Path) -> Path:
    return begin(storage, "half", {})


def part_of_a_run(storage: Path) -> Path:
    part = search(storage) / "students" / "kr"
    part.mkdir(parents=True)
    return part


def whole_storage(storage: Path) -> Path:
    search(storage)
    return storage


def cache(storage: Path) -> Path:
    part = storage / "cache" / "data" / "digits-1"
    part.mkdir(parents=True)
    return part


def reports(storage: Path) -> Path:
    (storage / "reports").mkdir()
    return storage / "reports"


def of_mlflow(storage: Path) -> Path:
    (storage / "mlruns" / "0").mkdir(parents=True)
    return storage / "mlruns"


def exported(storage: Path) -> Path:
    (storage / "ship").mkdir()
    (storage / "ship" / "student.json").write_text("{}")
    return storage / "ship"


def empty(storage: Path) -> Path:
    (storage / "nothing").mkdir()
    return storage / "nothing"


def of_others(storage: Path) -> Path:
    (storage / "photos" / "cats").mkdir(parents=True)
    return storage / "photos"


KINDS = [
    (search, ["its search has not finished", "the command that began it goes on"]),
    (search_before_its_trials, ["its search has not begun its trials"]),
    (single, ["the run of a single student (krscale distill: kr at 1/4)",
              "its weights in student.safetensors",
              "ladder.capacities = ['1/4'] and search.methods = ['kr']"]),
    (single_of_a_name, ["(krscale distill: kr at tiny)",
                        "with 'tiny' alone in [[ladder.students]] and search.methods"]),
    (unfinished_single, ["single student", "has not finished", "the command that began it goes"]),
    (part_of_a_run, ["it is a part of the run", "/search"]),
    (whole_storage, ["it is the storage that runs are in; name one of them", "search"]),
    (cache, ["data, teachers and stores, which the runs of a storage share"]),
    (reports, ["what `krscale report` wrote of several runs"]),
    (of_mlflow, ["MLflow", "`krscale ui`"]),
    (exported, ["an exported student", "`krscale verify"]),
    (empty, ["it is empty"]),
    (of_others, ["not the folder of a run: it has no experiment.json"]),
]  # fmt: skip


@pytest.mark.parametrize(("make", "parts"), KINDS, ids=[make.__name__ for make, _ in KINDS])
def test_a_folder_that_no_search_has_finished_in_is_called_what_it_is(
    make: Callable[[Path], Path], parts: list[str], tmp_path: Path
) -> None:
    folder = make(tmp_path)
    with pytest.raises(UserError) as caught:
        require_search(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder}: no curve.json here: ")
    for part in parts:
        assert part in message
    if make not in (search, search_before_its_trials):
        assert "search has not" not in message


@pytest.mark.parametrize("make", [search, single, unfinished_single])
def test_every_run_is_a_run(make: Callable[[Path], Path], tmp_path: Path) -> None:
    require_run(make(tmp_path))


@pytest.mark.parametrize("command", ["verify", "store info", "sync"])
@pytest.mark.parametrize("make", [cache, of_mlflow, empty, of_others, whole_storage])
def test_commands_that_take_any_run_say_what_else_it_is(
    command: str, make: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path)
    (expected,) = [parts[0] for kind, parts in KINDS if kind is make]
    assert main([*command.split(), str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"krscale: error: {folder}: ")
    assert expected in line


@pytest.mark.parametrize("command", ["clean", "ui", "report search"])
def test_a_run_in_the_place_of_its_storage_is_refused(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise `clean` finds nothing to remove, and `ui` no database, which a search makes."""
    folder = search(tmp_path)
    assert main([*command.split(), "--storage-path", str(folder)]) == 2
    expected = f"{folder} is the folder of a run; its storage is {tmp_path}."
    assert f"krscale: error: --storage-path: {expected}" in capsys.readouterr().err


def test_insight_says_that_a_single_student_has_no_trials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["insight", str(single(tmp_path))]) == 2
    error = capsys.readouterr().err
    assert "no search was run here (there is no journal.log): it is the run of a single" in error


def test_a_run_that_does_not_exist_says_which_do(tmp_path: Path) -> None:
    cache(tmp_path), of_others(tmp_path), single(tmp_path)
    (search(tmp_path) / "curve.json").write_text("{}")
    with pytest.raises(UserError, match=r"no such run\. Did you mean 'search'") as caught:
        require_folder(tmp_path / "serch")
    assert f"Runs with a curve in {tmp_path}: search; without one: single." in str(caught.value)
    with pytest.raises(UserError, match=r"with a curve in .*: none; without one: none"):
        require_folder(tmp_path / "nowhere" / "search")
    for number in range(30):
        begin(tmp_path, f"run-{number:02}", {})
    with pytest.raises(UserError, match=r"run-19 and 11 more\.$"):
        require_folder(tmp_path / "zzzzzzzz")
