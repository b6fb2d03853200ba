"""Every file of a finished run, damaged: every command ends in time and without a traceback."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from drilling import Drill
from finished_search import SETTINGS, search, without_ray
from running import in_process, overrides

pytestmark = [pytest.mark.drill, pytest.mark.timeout(3600)]
COMMANDS: dict[str, list[str]] = {
    "tune": ["tune", "SETTINGS"],
    "tune, one more trial": ["tune", "SETTINGS", "--set", "search.trials_per_size=3"],
    "teach": ["teach", "SETTINGS"],
    "report": ["report", "RUN"],
    "insight": ["insight", "RUN"],
    "pick": ["pick", "RUN", "--max-params", "1M", "--format", "safetensors", "--no-register"],
    "sync": ["sync", "RUN", "--timeout", "20"],
    "verify": ["verify", "RUN"],
    "store info": ["store", "info", "RUN"],
    "store check": ["store", "check", "RUN"],
}
LEFT_OUT = {".png", ".html", ".csv", ".lock"}
"""Suffixes of files that are rewritten, or are empty."""
MAX_SECONDS = 120.0


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes() or b"\0")
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut": cut,
    "flipped": flip,
    "emptied": lambda path: path.write_bytes(b"") and None,
    "null": lambda path: path.write_bytes(b"null\n") and None,
    "Latin-1": lambda path: path.write_bytes("é".encode("latin-1") + path.read_bytes()) and None,
    "gone": Path.unlink,
    "a folder": replaced(Path.mkdir),
    "a named pipe": replaced(os.mkfifo),
    "grown to a terabyte": lambda path: os.truncate(path, 10**12),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("whole") / "storage"
    run = search(storage)
    pick = ["--max-params", "1M", "--format", "safetensors", "--no-register", "--quiet"]
    assert in_process("pick")([str(run), *pick]) == 0
    return storage


@pytest.mark.usefixtures("checked_here")  # a process for each of the exports takes minutes
@pytest.mark.parametrize("name", COMMANDS)
def test_damaged_files_of_a_run(
    name: str, whole: Path, drill: Drill, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drill.must_hold(f"krscale {name} ends with exit code 0, 1 or 2 and no traceback, and in time")
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    files = [f for f in files if f.suffix not in LEFT_OUT and f.parts[0] != "mlartifacts"]
    ended = {0: 0, 1: 0, 2: 0}
    for number, file in enumerate(files):
        draw = random.Random(f"{name}{file}")
        for damage in draw.sample(sorted(DAMAGES), 2):
            storage = tmp_path / f"{number}-{draw.random()}"  # MLflow keeps databases open by name
            shutil.copytree(whole, storage, ignore=shutil.ignore_patterns("mlartifacts"))
            DAMAGES[damage](storage / file)
            code = _in_time(COMMANDS[name], storage, f"{file}: {damage}")
            ended[code] += 1
            said = capsys.readouterr()
            assert "Traceback" not in said.err, f"{file}: {damage}: {said.err}"
            if code:
                assert str(storage) in said.err + said.out, f"{file}: {damage}: names no file"
            drill.injected(f"file of a run that is {damage}")
            shutil.rmtree(storage)
    drill.held(", ".join(f"exit code {code}: {number}" for code, number in ended.items()))


def _in_time(command: list[str], storage: Path, what: str) -> int:
    """Run a command in a thread, so that a hang is noticed."""
    settings = overrides(*SETTINGS, "tracking.enabled=false", f"storage_path={storage}")
    places = {"RUN": [str(storage / "small")], "SETTINGS": [*settings, "--quiet"]}
    given = [part for word in command[1:] for part in places.get(word, [word])]
    found: list[int | BaseException] = []

    def run() -> None:
        try:
            found.append(in_process(command[0])(given))
        except BaseException as error:  # noqa: BLE001 - raised again where the test is
            found.append(error)

    with without_ray():
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(MAX_SECONDS)
    assert found, f"{what}: it hangs"
    if isinstance(found[0], BaseException):
        raise AssertionError(f"{what}: {type(found[0]).__name__}: {found[0]}") from found[0]
    assert found[0] in (0, 1, 2), what
    return found[0]
