"""A search is recorded while its MLflow experiment is deleted, or its database has no room."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from drilling import Drill
from mlflow import MlflowClient
from recorded_training import NUM_EPOCHS, share_of_time, train

from krscale.tracking import Tracker, sync

pytestmark = [pytest.mark.drill, pytest.mark.timeout(600)]
NUM_TRIALS = 4
"""Number in each phase: before the fault, while it lasts, and after it."""
RUNS = {"kr", *(f"kr/1-16/trial-{number}" for number in range(3 * NUM_TRIALS))}
ByKey = Callable[[Path], dict[str, Any]]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("krscale.tracking.writer._LONGEST_PAUSE", 0.5)
    return []


def record(tracker: Tracker, fault: Callable[[], None], over: Callable[[], None]) -> float:
    """Train before a fault, while it lasts and after it; return the share of time it cost."""
    tracker.start_run("kr", "digits kr")
    costs = [train(tracker, range(NUM_TRIALS))]
    fault()
    costs.append(train(tracker, range(NUM_TRIALS, 2 * NUM_TRIALS)))
    over()
    costs.append(train(tracker, range(2 * NUM_TRIALS, 3 * NUM_TRIALS)))
    tracker.end_run("kr")
    tracker.close(1)
    return share_of_time(costs, 3 * NUM_TRIALS)


def check_all(runs: dict[str, Any]) -> None:
    """Check that every run has ended, with every point once."""
    assert set(runs) == RUNS
    for number in range(3 * NUM_TRIALS):
        trial = runs[f"kr/1-16/trial-{number}"]
        assert trial.status == "FINISHED"
        accuracy = [(m[1], m[2]) for m in trial.metrics if m[0] == "val/accuracy"]
        assert accuracy == [(number + epoch / 10, epoch) for epoch in range(NUM_EPOCHS)]
        assert len(trial.metrics) == 2 * NUM_EPOCHS
        assert trial.params == {"lr": str(number / 100)}


@pytest.mark.parametrize("back", ["during", "after"])
def test_a_deleted_experiment_loses_nothing_once_it_is_restored(
    back: str, drill: Drill, storage: Path, by_key: ByKey, said: list[str]
) -> None:
    drill.must_hold("training waits at most 5 % longer for its epochs")
    drill.must_hold("every point is in MLflow in the end, none twice")
    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")

    def number() -> str:
        return client.get_experiment_by_name("digits").experiment_id

    def delete() -> None:
        client.delete_experiment(number())
        drill.injected("the experiment is deleted through MLflow while a search records")

    def restore() -> None:
        client.restore_experiment(number())

    tracker = Tracker("", "digits", storage / "run", warn=said.append)
    share = record(tracker, delete, restore if back == "during" else lambda: None)
    drill.measured("time that training spent on recording", 100 * share, "%")
    assert share < 0.05, share
    drill.held(f"it waited {100 * share:.2f} % longer")
    assert any("its experiment 'digits' is deleted" in line for line in said), said
    if back == "after":
        assert sync(storage / "run", timeout=5, warn=said.append) > 0
        restore()
        drill.injected("krscale sync before it is restored")
    assert sync(storage / "run", warn=said.append) == 0
    check_all(by_key(storage / "mlflow.db"))
    drill.held(f"all {6 * NUM_TRIALS * NUM_EPOCHS} points, each once, after krscale sync")


@pytest.fixture
def small_disk(tmp_path: Path, empty_database: Path) -> Iterator[Path]:
    """A file system with a database of MLflow's and little room beside it; only root can."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = empty_database.stat().st_size + 3 * 2**20
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this user cannot mount a file system")
    shutil.copy(empty_database, folder / "mlflow.db")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Take all the room there is."""
    with (folder / "filler").open("wb", buffering=0) as file:
        for size in (2**16, 2**12, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue


def test_a_full_disk_of_the_database_loses_nothing_once_there_is_room(
    drill: Drill, small_disk: Path, tmp_path: Path, by_key: ByKey, said: list[str]
) -> None:
    drill.must_hold("training waits at most 5 % longer for its epochs")
    drill.must_hold("every point is in MLflow in the end, none twice, and none was refused")
    database, run = small_disk / "mlflow.db", tmp_path / "run"
    tracker = Tracker(f"sqlite:///{database}", "digits", run, warn=said.append)

    def fault() -> None:
        fill(small_disk)
        drill.injected("the disk of MLflow's database is full while a search records")

    share = record(tracker, fault, (small_disk / "filler").unlink)
    drill.measured("time that training spent on recording", 100 * share, "%")
    assert share < 0.05, share
    drill.held(f"it waited {100 * share:.2f} % longer")
    assert any("cannot be used" in line for line in said), said
    assert sync(run, warn=said.append) == 0
    assert not (run / "tracking" / "refused.jsonl").exists(), said
    check_all(by_key(database))
    drill.held(f"all {6 * NUM_TRIALS * NUM_EPOCHS} points, each once, after krscale sync")
