"""The thread that sends to MLflow goes on after any error; recording goes on meanwhile."""

import time
from pathlib import Path

import pytest

from krscale.errors import DiskFullError
from krscale.tracking.address import resolve_address
from krscale.tracking.refusals import ServerAway
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
    """The end of the thread closes the spool: the next event would raise "Bad file descriptor"."""

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


class _Flaky:
    """A server that fails at every seventh request."""

    identity = "1@0"

    def __init__(self) -> None:
        self.num_requests, self.ended = 0, set[str]()

    def _request(self) -> None:
        self.num_requests += 1
        if self.num_requests % 7 == 0:
            raise ServerAway("502 Bad Gateway")

    def find_run(self, key: str, spool: str) -> str | None:
        self._request()
        return None

    def create_run(self, key: str, *rest: object) -> str:
        self._request()
        return key

    def log(self, *rest: object) -> None:
        self._request()

    def set_status(self, run_id: str, status: str, ms: int) -> None:
        self._request()
        if status != "RUNNING":
            self.ended.add(run_id)


def test_a_server_that_fails_now_and_then_gets_all_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If each failure sent the whole batch again, it would always fail, and nothing be sent."""
    server = _Flaky()
    monkeypatch.setattr(Writer, "_connect", lambda writer: server)
    for name in ("_BATCH_SECONDS", "_FIRST_PAUSE", "_LONGEST_PAUSE"):
        monkeypatch.setattr(f"krscale.tracking.writer.{name}", 0.0)
    spool, keys = Spool(tmp_path / "spool.jsonl"), [f"kr/{number}" for number in range(20)]
    for key in keys:
        content = {"name": key, "parent": None, "tags": {}, "params": {"a": "1"}}
        spool.append(Event("start", key, 1, content))
        spool.append(Event("log", key, 2, {"metrics": {"a": 1.0}, "step": 1, "tags": {}}))
        spool.append(Event("end", key, 3, {"status": "COMPLETE"}))
    writer = Writer(
        spool, tmp_path, tmp_path, resolve_address("http://127.0.0.1:9", tmp_path), "exp",
        lambda line: None, lambda: None,
    )  # fmt: skip
    assert writer.close(30.0) == 0
    assert server.ended == set(keys)
    spool.close()
