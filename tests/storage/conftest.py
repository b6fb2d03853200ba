"""Machines that share nothing but a storage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from krscale.storage import driver_lock, heartbeats, room, run_mirror
from krscale.storage.address import CACHE_VARIABLE, working_folder


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """URI of a storage, in a folder that machines access in no other way."""
    return f"file://{tmp_path / 'bucket'}"


@pytest.fixture
def machine(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Let this process act as a machine of this name; return its working folder."""

    def on(name: str) -> Path:
        monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / name))
        monkeypatch.setattr(room, "_held", {})
        return working_folder(uri)

    monkeypatch.setitem(room._limit, "bytes", room.DEFAULT_GB * 1e9)
    return on


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the pauses; the tests do the work of the threads."""
    monkeypatch.setattr(driver_lock, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(run_mirror, "LOOK_SECONDS", 1000.0)
    monkeypatch.setattr(run_mirror, "LIST_SECONDS", 1000.0)
    monkeypatch.setattr(heartbeats, "TRY_SECONDS", 1000.0)
