"""Which commit a run names."""

import shutil
import subprocess
from pathlib import Path

import pytest

from krscale.runs import origin
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
    monkeypatch.setattr(origin, "__file__", str(tmp_path / "krscale" / "runs" / "origin.py"))
    (tmp_path / "docs" / "claims.md").write_text("written by a run\n")
    assert git_commit() == commit
    (tmp_path / "search_spaces" / "kr.toml").write_text("another space\n")
    assert git_commit() == f"{commit}-dirty"
