"""What runs of an older krscale record of their data."""

import os
from pathlib import Path

import pytest
from running import bounded_memory

from krscale.runs.older import data_of


@pytest.mark.parametrize("begun", [b"", b'{"op": "start"}\n'])
def test_a_record_that_has_grown_beyond_any_is_passed_over(tmp_path: Path, begun: bytes) -> None:
    spool = tmp_path / "tracking" / "spool.jsonl"
    spool.parent.mkdir()
    spool.write_bytes(begun)
    os.truncate(spool, 10**12)
    with bounded_memory():
        assert data_of(tmp_path) == set()
