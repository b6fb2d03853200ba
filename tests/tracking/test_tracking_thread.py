"""The thread that tells MLflow goes on, whatever it meets; recording goes on beside it."""

import time
from pathlib import Path

import pytest

from krscale.errors import DiskFullError
from krscale.tracking.address import resolve_address
from krscale.tracking.spool import Event, Spool
from krscale.tracking.writer import Writer

EVENT = Event("log", "kr", 7, {"metrics": {"a": 1.0}, "step": 1, "tags": {}})


@pytest.mark.parametrize(
    "error",
    [
        DiskFullError("/runs/a/tracking/state.json: the disk is full"),
        OSError(5, "Input/output error"),
        LookupError("a defect"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_it_does_not_end_before_the_tracker_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Its end closes the spool: the next event would raise "Bad file descriptor"."""

    def fail(writer: Writer) -> None:
        raise error

    monkeypatch.setattr(Writer, "_send_batch", fail)
    told, ended = list[str](), list[str]()
    spool = Spool(tmp_path / "spool.jsonl")
    writer = Writer(
        spool, tmp_path, tmp_path, resolve_address("http://127.0.0.1:9", tmp_path), "exp",
        told.append, lambda: ended.append("ended"),
    )  # fmt: skip
    spool.append(EVENT)
    writer.notify()
    deadline = time.monotonic() + 20.0
    while not told and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(told) == 1
    assert "The run goes on, recording to" in told[0]
    assert ended == []
    spool.append(EVENT)
    assert writer.close(20.0) == 2, "nothing is lost"
    assert ended == ["ended"]
    spool.close()
