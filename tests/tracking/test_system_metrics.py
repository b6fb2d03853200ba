"""The load of the machine is recorded for the runs of a search, and only for those."""

import errno
import os
import sys
import threading
import time

import pytest

from krscale.errors import UserError
from krscale.tracking import Tracker
from krscale.tracking.system import SystemMonitor


def record(storage, tracker: Tracker) -> None:
    """Record a search of two methods, one of which ends early; each has a trial."""
    spool = storage / "run" / "tracking" / "spool.jsonl"
    for method in ("plain", "kr"):
        tracker.start_run(method, f"digits {method}")
        tracker.start_run(f"{method}/trial", f"{method} cap=1/4", parent=method)
    tracker.end_run("plain")
    length = spool.stat().st_size
    deadline = time.monotonic() + 30
    while spool.read_text()[length:].count("system/cpu") < 3:
        assert time.monotonic() < deadline, "no samples"
        time.sleep(0.01)


def test_runs_of_a_search_have_them_in_one_line_over_all_starts(storage, by_key, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    for _ in range(2):
        with Tracker("", "digits", storage / "run", system_metrics=True) as tracker:
            record(storage, tracker)
    runs = by_key(storage / "mlflow.db")
    found = {
        key: [m for m in run.metrics if m[0].startswith("system/")] for key, run in runs.items()
    }
    assert found["kr/trial"] == found["plain/trial"] == []
    memory = [m for m in found["kr"] if m[0] == "system/system_memory_usage_megabytes"]
    assert sorted(step for _, _, step in memory) == list(range(len(memory)))
    assert len(memory) >= 6
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6
    assert all(10 < value <= installed for _, value, _ in memory)
    shares = [
        value for name, value, _ in found["kr"] if name == "system/cpu_utilization_percentage"
    ]
    assert all(0 <= value <= 100 for value in shares)
    assert len(found["plain"]) < len(found["kr"]), "it ended before"


def test_they_are_off_unless_asked_for(storage, by_key, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.01")
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    with Tracker("", "digits", storage / "run") as tracker:
        tracker.start_run("kr", "digits kr")
        time.sleep(0.1)
    assert by_key(storage / "mlflow.db")["kr"].metrics == []


def test_what_is_missing_is_named_before_anything_is_recorded(storage, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("mlflow.system_metrics.metrics")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(UserError, match=r"tracking\.system_metrics: .*psutil.*krscale\[system\]"):
        Tracker("", "digits", storage / "run", system_metrics=True)
    assert not (storage / "run").exists()


def test_a_full_disk_is_left_to_the_run(monkeypatch):
    """The thread must not end with a traceback, but go on measuring once there is room."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.01")
    steps, logged = list[int](), threading.Event()

    def log(key: str, metrics: dict[str, float], step: int) -> None:
        steps.append(step)
        if len(steps) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        logged.set()

    monitor = SystemMonitor(log)
    monitor.watch("kr", first_step=5)
    assert logged.wait(30)
    monitor.close()
    assert steps[:3] == [5, 5, 5]
