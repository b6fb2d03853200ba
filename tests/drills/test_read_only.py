"""Commands on a storage that has become read-only: one line and exit code 2."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from drilling import Drill
from finished_search import SETTINGS, search
from running import overrides

from krscale.cli.app import main

pytestmark = [pytest.mark.drill, pytest.mark.timeout(600)]


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """The same folder as `tmp_path / "runs"`, mounted read-only; only root can."""
    (tmp_path / "runs").mkdir()
    folder = tmp_path / "read-only"
    folder.mkdir()
    mount = ["mount", "--bind", str(tmp_path / "runs"), str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this user cannot mount a file system")
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_commands_on_read_only_storage(
    drill: Drill, tmp_path: Path, read_only: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drill.must_hold("whatever would write says so in one line and ends with 2; what reads works")
    torch.set_num_threads(1)
    run = read_only / search(tmp_path / "runs").name
    there = ("--set", f"storage_path={run.parent}")
    writers = (
        ("tune", "--quiet", *there, "--set", f"name={run.name}"),
        ("tune", "--quiet", *there, "--set", "name=another"),
        ("teach", *there, "--set", "teacher.num_epochs=1"),
        ("distill", "--quiet", *there),
        ("pick", "--quiet", str(run), "--max-params", "100000"),
        ("insight", str(run)),
        ("report", str(run)),
        ("sync", str(run)),
        ("store", "check", "--repair", str(run)),
    )
    same = overrides(*SETTINGS, f"storage_path={run.parent}")
    readers = (
        ("teach", *same),
        ("store", "info", str(run)),
        ("store", "check", str(run)),
        ("verify", str(run)),
    )
    found: dict[str, tuple[int, str]] = {}
    for arguments in (*writers, *readers):
        code = main(list(arguments))
        lines = capsys.readouterr().err.splitlines()
        errors = [line for line in lines if line.startswith("krscale: error: ")]
        found[" ".join(arguments)] = code, " / ".join(errors or lines[-3:])
        drill.injected(f"krscale {arguments[0]} on a read-only storage")
    for arguments in writers:
        code, said = found[" ".join(arguments)]
        assert code in (0, 2), (arguments, said)
        assert code == 0 or said.count("krscale: error: ") == 1, (arguments, said)
        assert code == 0 or "read-only" in said.lower(), (arguments, said)
    assert [found[" ".join(arguments)][0] for arguments in readers] == [0, 0, 0, 0], found
    drill.held(f"{len(writers)} commands that write, {len(readers)} that read")
