"""A damaged record for MLflow never stops a training: it is set aside, with a warning."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from krscale.config import TrackingConfig
from krscale.errors import DamagedFileError
from krscale.files import write_json
from krscale.tracking import Begun, Tracker, sync
from krscale.tracking.mending import check_spool
from krscale.tracking.spool import Event, Spool, without_checksum


def record(run: Path, said: list[str], epochs: int = 4) -> None:
    with Tracker("", "digits", run, warn=said.append) as tracker:
        tracker.start_run("kr", "digits kr", tags={"a": "b"}, params={"c": 1})
        tracker.start_run("kr/1", "trial", parent="kr")
        for epoch in range(epochs):
            tracker.log_metrics("kr/1", {"accuracy": epoch / 8}, step=epoch)
        tracker.end_run("kr/1")
        tracker.end_run("kr")
        assert tracker.close(120) == 0


@pytest.fixture
def run(storage: Path) -> Path:
    said: list[str] = []
    record(storage / "run", said)
    assert said == []
    return storage / "run"


def spoils(content: bytes) -> list[bytes]:
    """Return contents of a damaged file."""
    draw = random.Random(0)
    found = [
        b"",
        content[: len(content) // 2],
        b"\xff" * 100,
        draw.randbytes(200),
        b"[]\n",
        b"{}\n",
    ]
    for _ in range(4):
        flipped = bytearray(content)
        flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
        found.append(bytes(flipped))
    return found


@pytest.mark.parametrize("name", ["state.json", "spool.jsonl"])
def test_any_damage_is_survived(name: str, run: Path, storage: Path, read_runs) -> None:
    path = run / "tracking" / name
    whole = path.read_bytes()
    for content in spoils(whole):
        path.write_bytes(content)
        said: list[str] = []
        record(run, said)
        for line in said:
            assert str(path) in line
            assert ".damaged" in line
    lost_ids = len({r.tags["krscale.spool"] for r in read_runs(storage / "mlflow.db")})
    assert lost_ids == 1 or name == "spool.jsonl"


def test_a_state_is_set_aside_and_everything_sent_again(run: Path, storage: Path, by_key) -> None:
    path = run / "tracking" / "state.json"
    content = json.loads(path.read_text())
    other_run = json.dumps({**content, "runs": {"kr": "0" * 32}})
    for number, spoilt in enumerate(("{", json.dumps({**content, "runs": 3}), "[]", other_run)):
        path.write_text(spoilt)
        said: list[str] = []
        record(run, said)
        (line,) = said
        assert line.startswith(f"{path}: damaged: ")
        aside = f"state.json.damaged{f'-{number + 1}' if number else ''}"
        assert aside in line
        assert (path.parent / aside).read_text() == spoilt
        assert len(by_key(storage / "mlflow.db")["kr/1"].metrics) == 4


def test_a_position_within_an_event_is_no_position(run: Path, storage: Path, by_key) -> None:
    path = run / "tracking" / "state.json"
    content = json.loads(path.read_text())
    for position in (content["position"] - 3, 1, -5, 10**9):
        write_json(path, {**content, "position": position, "checksum": ""})
        said: list[str] = []
        record(run, said)
        assert said == []
        assert len(by_key(storage / "mlflow.db")["kr/1"].metrics) == 4


def test_of_a_spool_the_readable_events_are_kept(run: Path, storage: Path, by_key) -> None:
    path = run / "tracking" / "spool.jsonl"
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if b'"step":2' in line)
    step = without_checksum(lines[at].rstrip()).replace(b'"step":2', b'"step":"two"') + b"\n"
    path.write_bytes(b"".join([*lines[:at], step, b"\x00\xff\n", *lines[at + 1 :]]))
    spoilt = path.read_bytes()
    said: list[str] = []
    record(run, said, epochs=5)
    (line,) = said
    assert line.startswith(f"{path}: damaged: line {at + 1}: step: ")
    assert f"2 of {len(lines) + 1} events are lost for MLflow" in line
    assert path.with_name("spool.jsonl.damaged").read_bytes() == spoilt
    runs = by_key(storage / "mlflow.db")
    # Step 2 is recorded once more, as the record lacks it: MLflow keeps equal points once.
    assert {step for _, _, step in runs["kr/1"].metrics} == {0, 1, 2, 3, 4}
    assert path.stat().st_mode & 0o077 == 0


def test_every_bit_of_a_line_is_compared(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.jsonl")
    spool.append(Event("log", "kr", 5, {"metrics": {"a": 0.5}, "step": 1, "tags": {}}))
    spool.close()
    content = (tmp_path / "spool.jsonl").read_bytes()
    check_spool(spool.path)
    for bit in range(8 * (len(content) - 1)):  # without the last newline: a crash may cut it
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        spool.path.write_bytes(flipped)
        with pytest.raises(DamagedFileError, match=r"spool\.jsonl: damaged: line \d of \d: "):
            check_spool(spool.path)


def test_a_record_of_an_older_krscale_has_no_checksums(run: Path, storage: Path, by_key) -> None:
    path = run / "tracking" / "spool.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"".join(without_checksum(line) + b"\n" for line in lines))
    said: list[str] = []
    record(run, said, epochs=5)
    assert said == []
    assert len(by_key(storage / "mlflow.db")["kr/1"].metrics) == 5


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 10**12)


@pytest.mark.parametrize("name", ["state.json", "spool.jsonl"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, sparse])
def test_what_is_no_file_is_set_aside(name: str, make: Any, run: Path, storage: Path) -> None:
    path = run / "tracking" / name
    path.unlink()
    make(path)
    said: list[str] = []
    record(run, said)
    (line,) = said
    assert line.startswith(f"{path}: damaged: it ")
    assert f"set aside as {name}.damaged" in line
    assert path.is_file()


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_stands_in_the_place_of_refusals_is_set_aside(
    make: Any, run: Path, storage: Path
) -> None:
    path = run / "tracking" / "refused.jsonl"
    make(path)
    said: list[str] = []
    with Tracker("", "digits", run, warn=said.append) as tracker:
        tracker.log_metrics("kr/1", {"../bad": 1.0}, step=9)
        tracker.log_metrics("kr/1", {"good": 1.0}, step=9)
        assert tracker.close(120) == 0
    assert "set aside as refused.jsonl.damaged" in said[0]
    assert "MLflow refused metrics of kr/1" in said[1]
    assert len(path.read_text().splitlines()) == 1


def test_a_damaged_state_does_not_hide_where_a_run_was_recorded(
    run: Path, storage: Path, by_key
) -> None:
    (run / "tracking" / "state.json").write_text("{")
    said: list[str] = []
    begun = Begun(TrackingConfig(experiment="digits"), storage)
    assert sync(run, begun=begun, warn=said.append) == 0
    assert "state.json: damaged" in said[0]
    assert len(by_key(storage / "mlflow.db")["kr/1"].metrics) == 4
