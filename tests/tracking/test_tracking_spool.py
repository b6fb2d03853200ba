import errno
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krscale.tracking.spool import Event, Spool

EVENTS = [Event("log", f"run-{i}", 1000 + i, {"text": "ä\n" * i}) for i in range(5)]


def written(spool, position=0):
    return [event for event, _ in spool.read(position) if event.op != "spool"]


def test_events_come_back_in_order_and_from_any_position(tmp_path):
    spool = Spool(tmp_path / "spool.jsonl")
    for event in EVENTS:
        spool.append(event)
    assert written(spool) == EVENTS
    positions = [end for _, end in spool.read(0)]
    assert positions[-1] == spool.size == (tmp_path / "spool.jsonl").stat().st_size
    for i, position in enumerate(positions):
        assert written(spool, position) == EVENTS[i:]
    assert [event for event, _ in spool.read(positions[0], count=2)] == EVENTS[:2]
    assert list(spool.read(spool.size)) == []


def test_a_spool_keeps_its_name_and_two_spools_differ(tmp_path):
    first = Spool(tmp_path / "a.jsonl")
    first.close()
    assert Spool(tmp_path / "a.jsonl").id == first.id
    assert Spool(tmp_path / "b.jsonl").id != first.id


@settings(deadline=None, max_examples=60)
@given(cut=st.integers(min_value=0, max_value=600))
def test_a_file_cut_anywhere_loses_only_the_event_that_was_cut(cut):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spool.jsonl"
        spool = Spool(path)
        for event in EVENTS:
            spool.append(event)
        ends = [end for _, end in spool.read(0)]
        spool.close()
        size = min(cut, ends[-1])
        os.truncate(path, size)
        again = Spool(path)
        kept = sum(end <= size for end in ends[1:])
        assert written(again) == EVENTS[:kept]
        again.append(EVENTS[0])
        assert written(again) == [*EVENTS[:kept], EVENTS[0]]
        again.close()


def test_threads_do_not_tear_each_others_events(tmp_path):
    spool = Spool(tmp_path / "spool.jsonl")
    events = [Event("log", f"{i}", i, {"x": "y" * (i % 300)}) for i in range(2000)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(spool.append, events))
    assert sorted(written(spool), key=lambda event: event.time_ms) == events


def test_a_full_disk_raises_and_leaves_whole_lines(tmp_path, monkeypatch):
    spool = Spool(tmp_path / "spool.jsonl")
    spool.append(EVENTS[0])
    real, room = os.write, [10]

    def nearly_full(file: int, data: bytes) -> int:
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, data[: room.pop()])

    monkeypatch.setattr(os, "write", nearly_full)
    with pytest.raises(OSError, match="No space left") as caught:
        spool.append(EVENTS[1])
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    spool.append(EVENTS[2])
    assert written(spool) == [EVENTS[0], EVENTS[2]]


def test_a_closed_spool_refuses_events(tmp_path):
    spool = Spool(tmp_path / "spool.jsonl")
    spool.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        spool.append(EVENTS[0])


def test_what_json_cannot_hold_is_refused(tmp_path):
    spool = Spool(tmp_path / "spool.jsonl")
    with pytest.raises(ValueError, match="not JSON compliant"):
        spool.append(Event("log", "a", 0, {"x": float("nan")}))
    assert written(spool) == []
