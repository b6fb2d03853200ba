"""What `ray job submit` uploads: the code, no more.

`--working-dir .` with `jobs/runtime_env.yaml`, which Ray packs without compression, and the archive
of `make package`.
"""

from __future__ import annotations

import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from ray._private.runtime_env.packaging import _zip_files
from running import ROOT

LIMIT, LIMIT_OF_ARCHIVE = 2_500_000, 1_000_000
"""Bytes. The first bounds what is taken along by mistake; it grows with the code."""


def uploaded(folder: Path, archive: Path) -> dict[str, int]:
    """Return name and size of every file that Ray packs; it packs without compression.

    Folders are not returned: Ray packs the name even of an excluded folder, if it is empty.
    """
    environment = yaml.safe_load((ROOT / "jobs/runtime_env.yaml").read_text(encoding="utf-8"))
    _zip_files(str(folder), environment["excludes"], str(archive), include_gitignore=True)
    with ZipFile(archive) as content:
        return {f.filename: f.file_size for f in content.infolist() if not f.is_dir()}


def test_an_upload_is_small_and_has_what_a_job_needs(tmp_path: Path) -> None:
    found = uploaded(ROOT, tmp_path / "package.zip")
    largest = sorted(found, key=lambda name: -found[name])[:5]
    assert (tmp_path / "package.zip").stat().st_size < LIMIT, largest
    check_whole(found)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="an archive of the code, not a checkout")
def test_the_archive_is_smaller_and_has_it_too(tmp_path: Path) -> None:
    subprocess.run(["bash", "-c", archiving(tmp_path, "")], cwd=ROOT, check=True)
    assert (tmp_path / "job.zip").stat().st_size < LIMIT_OF_ARCHIVE
    with ZipFile(tmp_path / "job.zip") as content:
        check_whole({f.filename: f.file_size for f in content.infolist() if not f.is_dir()})


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="an archive of the code, not a checkout")
def test_a_file_that_is_not_committed_leaves_the_older_archive(tmp_path: Path) -> None:
    (tmp_path / "job.zip").write_text("older")
    script = archiving(tmp_path, "no_such_models.py")
    ended = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert "only what is committed can be packed" in ended.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["job.zip"]
    assert (tmp_path / "job.zip").read_text() == "older"


def archiving(folder: Path, arguments: str) -> str:
    """Return the command of `make package` that writes into a folder."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (command,) = [line for line in makefile.splitlines() if "git archive" in line]
    script = command.partition("&& ")[2].replace("build/", f"{folder}/")
    return script.replace("$(ARGS)", arguments)


def check_whole(found: Mapping[str, int]) -> None:
    """Check that a job finds what it needs, and nothing else was taken along."""
    needed = ["jobs/digits.toml", "search_spaces/kr.toml", "krscale/tune.py"]
    templates = [
        f"krscale/report/templates/{p.name}" for p in ROOT.glob("krscale/report/templates/*")
    ]
    assert templates
    assert [name for name in (*needed, *templates) if name not in found] == []
    jobs = [name for name in found if name.startswith("jobs/") and name.endswith(".toml")]
    contents = [tomllib.loads((ROOT / name).read_text(encoding="utf-8")) for name in jobs]
    spaces = {f"search_spaces/{job['search']['space']}.toml" for job in contents}
    assert len(jobs) > 5
    assert spaces - set(found) == set()
    assert [name for name in found if name.startswith(("tests/", "docs/", ".git/", "runs/"))] == []


@pytest.mark.parametrize(
    "left", [".venv/lib/torch.so", "runs/digits/run.json", "build/site/index.html", "mlruns/0/x",
             "krscale/__pycache__/tune.pyc", "tests/runs/older.tar.xz", ".hypothesis/examples/a"],
)  # fmt: skip
def test_what_work_leaves_behind_is_not_uploaded(left: str, tmp_path: Path) -> None:
    """Also where there is no .gitignore, as in an unpacked archive."""
    folder = tmp_path / "checkout"
    for name in (left, "krscale/tune.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    files = {name for name, size in uploaded(folder, tmp_path / "package.zip").items() if size}
    assert files == {"krscale/tune.py"}


def test_a_file_of_ones_own_travels(tmp_path: Path) -> None:
    folder = tmp_path / "checkout"
    for name in ("my_models.py", "my/tests/case.toml", "experiment.toml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    assert len(uploaded(folder, tmp_path / "package.zip")) == 3
