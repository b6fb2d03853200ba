"""Which commit a run names."""

import shutil
import subprocess
from pathlib import Path

import pytest

from krscale.runs import folder as run_folders
from krscale.runs.folder import find_run
from krscale.runs.origin import git_commit


def git(folder: Path, *arguments: str) -> str:
    program = shutil.which("git")
    assert program is not None
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@localhost"]
    command = [program, "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_results_beside_the_code_do_not_make_its_commit_dirty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in ("krscale/tune.py", "search_spaces/kr.toml", "docs/claims.md"):
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_text("as committed\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "all")
    commit = git(tmp_path, "rev-parse", "HEAD")
    monkeypatch.setattr(run_folders, "__file__", str(tmp_path / "krscale" / "runs" / "folder.py"))
    (tmp_path / "docs" / "claims.md").write_text("written by a run\n")
    assert git_commit() == commit
    (tmp_path / "search_spaces" / "kr.toml").write_text("another space\n")
    assert git_commit() == f"{commit}-dirty"


def test_a_folder_of_images_does_not_hide_the_run_that_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = tmp_path / "runs"
    for folder in ("photos", "other", "runs/photos", "runs/elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    assert find_run("photos", storage) == tmp_path / "photos", "neither is a run"
    (storage / "photos" / "experiment.json").write_text("{}")
    assert find_run("photos", storage) == storage / "photos"
    assert find_run("./photos/../photos", storage) == tmp_path / "photos", "a path is what it says"
    (tmp_path / "photos" / "experiment.json").write_text("{}")
    assert find_run("photos", storage) == tmp_path / "photos", "both are: the nearer one"
    assert find_run("elsewhere", storage) == storage / "elsewhere"
    assert find_run("other", storage) == tmp_path / "other"
