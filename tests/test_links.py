"""Links in the folder of a run: refused before anything is read, written or deleted through one."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import in_process

from krscale.config import load
from krscale.errors import UserError
from krscale.links import refuse_links
from krscale.runs.folder import find_run, run_folder
from krscale.tracking import Tracker

PLACES = (
    ".lock", ".owner", "experiment.json", "environment.json", "origin.json", "latency.json",
    "journal.log", "curve.json", "curve.before.json", "report.html", "curve.png", "insight.json",
    "student.safetensors", "unfinished", "unfinished/kr@1-16", "students", "students/kr/1-16",
    "students/kr/1-16/seed-1000.safetensors", "tracking", "tracking/lock", "tracking/spool.jsonl",
    "tracking/state.json", "tracking/refused.jsonl", "tune", "export/1-16-kr", "registered",
    "earlier-1", "refit/1-16-kr",
)  # fmt: skip


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Somebody else's folder with a file."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious.txt").write_text("precious\n")
    return tmp_path / "outside"


def make_run(storage: Path) -> Path:
    with run_folder(load(None, ["name=mine", f"storage_path={storage}"]), {}) as folder:
        return folder


def put_link(run: Path, place: str, target: Path) -> None:
    path = run / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


@pytest.mark.parametrize("to_file", [True, False])
@pytest.mark.parametrize("place", PLACES)
def test_no_run_with_a_link_is_opened(
    place: str, to_file: bool, tmp_path: Path, outside: Path
) -> None:
    run = make_run(tmp_path / "storage")
    put_link(run, place, outside / "precious.txt" if to_file else outside)
    before = sorted(tmp_path.rglob("*"))
    for use in (
        lambda: make_run(tmp_path / "storage"),
        lambda: find_run(str(run), tmp_path),
        lambda: Tracker("", "krscale", run),
    ):
        with pytest.raises(UserError) as error:
            use()
        found = str(error.value)
        assert found.startswith(f"{run}: a link in the folder of a run")
        assert f"{run / place} -> {outside}" in found
    assert sorted(tmp_path.rglob("*")) == before
    assert (outside / "precious.txt").read_text() == "precious\n"


@pytest.mark.parametrize(
    "command",
    [
        ["report", "RUN"], ["report", "RUN", "OTHER"], ["insight", "RUN"], ["verify", "RUN"],
        ["sync", "RUN"], ["pick", "RUN", "--max-params", "1M"], ["store", "info", "RUN"],
        ["store", "check", "RUN"],
    ],
)  # fmt: skip
def test_commands_end_with_that_error(
    command: list[str], tmp_path: Path, outside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "storage")
    put_link(run, "curve.json", outside / "precious.txt")
    places = {"RUN": str(run), "OTHER": str(tmp_path)}
    assert in_process(command[0])([places.get(word, word) for word in command[1:]]) == 2
    found = capsys.readouterr().err
    assert found.startswith(f"krscale: error: {run}: a link in the folder of a run")
    assert found.count("\n") == 1
    assert (outside / "precious.txt").read_text() == "precious\n"


def test_a_dangling_link_and_one_to_the_run_itself_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for target in (tmp_path / "nothing", run / "experiment.json", run, Path("loop")):
        put_link(run, "loop", target)
        with pytest.raises(UserError, match="a link in the folder of a run"):
            refuse_links(run)


def test_many_links_and_names_that_are_no_text_are_one_short_error(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}").symlink_to(tmp_path)
    (tmp_path / "\udce9\x1b[31m").symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"links in .*0 -> .*1 -> .*2 -> .*; and 7 more") as error:
        refuse_links(tmp_path)
    str(error.value).encode()


def test_a_run_or_a_storage_reached_by_a_link_is_used(tmp_path: Path) -> None:
    real = make_run(tmp_path / "real")
    (tmp_path / "storage").symlink_to(tmp_path / "real")
    assert make_run(tmp_path / "storage") == real
    assert find_run("mine", tmp_path / "storage") == real
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine").symlink_to(real)
    assert make_run(other).resolve() == real
    assert find_run("mine", other) == real


def test_what_optuna_left_when_it_was_killed_is_no_such_link(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    put_link(run, "journal.log.lock", run / "journal.log")
    make_run(tmp_path)


def test_a_folder_that_is_no_run_is_not_looked_through(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cat.png").symlink_to(tmp_path / "nothing")
    assert find_run(str(tmp_path / "images"), tmp_path) == tmp_path / "images"
