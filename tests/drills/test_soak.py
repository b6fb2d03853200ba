"""Many trials in one search, many searches in one storage: memory, handles and disk stay flat."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from drilling import Drill
from finished_search import search
from parts.recorded_trials import recorded_trials
from running import ROOT, environment, overrides

NUM_TRIALS = int(os.environ.get("KRSCALE_DRILL_TRIALS", "1000"))
NUM_SEARCHES = int(os.environ.get("KRSCALE_DRILL_SEARCHES", "20"))
SETTINGS = (
    "cluster.address=local",
    "cluster.num_cpus=2",
    "data.max_images=200",  # a trial does almost no work: the drill is of the search
    "teacher.width=4",
    "teacher.num_epochs=1",
    "views.num_views=1",
    "ladder.capacities=['1/16']",
    "train.num_epochs=1",
    "search.methods=['plain']",
    "search.sampler=random",
    "search.early_stopping=none",
    "search.num_final_seeds=1",
    f"search.trials_per_size={NUM_TRIALS}",
)
MB = 1e6
LOOK_SECONDS = 3.0
"""Seconds between two samples, each of which lists thousands of files."""
MOST_PER_TRIAL = {"driver": 0.15 * MB, "workers": 0.15 * MB, "disk": 0.1 * MB, "handles": 0.02}
"""Bounds on growth per trial; Tune and Optuna keep records of every trial in the driver."""

pytestmark = [
    pytest.mark.drill,
    pytest.mark.cluster,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),  # MLflow's client
]


@dataclass(frozen=True)
class Sample:
    """What a search takes at one moment: bytes of memory and disk, open handles."""

    trials: int
    driver: float
    workers: float
    handles: float
    disk: float

    @classmethod
    def take(cls, process: psutil.Process, folders: list[Path]) -> "Sample":
        """Measure the driver, the workers of trials, and the disk."""
        started = process.children(recursive=True)
        trials = [p for p in started if p.name().startswith("ray::") and "Agent" not in p.name()]
        journal = folders[0] / "journal.log"
        # Optuna's codes of the states COMPLETE and PRUNED.
        written = journal.read_bytes() if journal.exists() else b""
        ended = written.count(b'"state":1') + written.count(b'"state":2')
        return cls(
            ended,
            process.memory_info().rss,
            sum(worker.memory_info().rss for worker in trials),
            sum(each.num_fds() for each in [process, *trials]),
            sum(size(folder) for folder in folders),
        )


def size(folder: Path) -> int:
    """Bytes of all files below a folder, some of which may vanish meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.lstat().st_size if path.is_file() else 0
    return total


@pytest.fixture
def temporary() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="kr", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_many_trials_in_one_search(drill: Drill, tmp_path: Path, temporary: Path) -> None:
    drill.injected("a trial of one search", NUM_TRIALS, "load")
    drill.must_hold("every trial is there, ended, once")
    drill.must_hold("memory, handles and disk grow by no more than the records of the trials")
    settings = (*SETTINGS, f"storage_path={tmp_path}", "name=soak")
    command = [sys.executable, "-m", "krscale.tune", *overrides(*settings), "--quiet"]
    log, run = tmp_path / "log.txt", tmp_path / "soak"
    samples: list[Sample] = []
    with log.open("w") as output:
        started = subprocess.Popen(
            command, env=environment(RAY_TMPDIR=str(temporary)), cwd=ROOT,
            stdout=output, stderr=output,
        )  # fmt: skip
        watched = psutil.Process(started.pid)
        while started.poll() is None:
            with suppress(psutil.Error, FileNotFoundError):
                samples.append(Sample.take(watched, [run, temporary]))
            time.sleep(LOOK_SECONDS)
    assert started.returncode == 0, log.read_text()
    trials = recorded_trials(run)
    assert len(trials) == NUM_TRIALS + 1
    assert all(trial.ended for trial in trials.values())
    drill.held(f"{NUM_TRIALS} trials and a final one, each ended once")

    busy = [each for each in samples if 0.1 * NUM_TRIALS <= each.trials <= 0.95 * NUM_TRIALS]
    assert len(busy) >= 2, samples[-3:]
    first, last = busy[0], busy[-1]
    for what, most in MOST_PER_TRIAL.items():
        grown = (getattr(last, what) - getattr(first, what)) / (last.trials - first.trials)
        unit = "handles" if what == "handles" else "kB"
        drill.measured(
            f"growth for each trial: {what}", grown / (1 if unit == "handles" else 1e3), unit
        )
        assert grown <= most, (what, first, last)
    drill.measured("memory of the driver at the end", last.driver / MB, "MB")
    drill.held("growth for each trial within the bounds, from a tenth of the trials on")


def test_many_searches_in_one_storage(drill: Drill, tmp_path: Path) -> None:
    drill.injected("a search in one storage and one process", NUM_SEARCHES, "load")
    drill.must_hold("data, teacher and store are made once")
    drill.must_hold("handles and memory of the process stay as they were")
    own, seen = psutil.Process(), []
    for number in range(NUM_SEARCHES):
        search(tmp_path, f"name=soak-{number}")
        seen.append((own.num_fds(), own.memory_info().rss, size(tmp_path / "cache")))
    early, late = seen[2], seen[-1]
    assert late[2] == early[2] == seen[0][2]
    drill.held(f"the cache had {late[2] / MB:.1f} MB after the first search and after the last")
    assert late[0] <= early[0] + 5, seen
    middle = NUM_SEARCHES // 2  # until then caches of matplotlib and torch fill
    growth = (late[1] - seen[middle][1]) / MB / (NUM_SEARCHES - 1 - middle)
    drill.measured("memory for each further search", growth, "MB")
    drill.measured("handles after the third and the last", late[0] - early[0], "more")
    assert growth < 10, seen  # due to native allocators: traced Python memory stays flat
    drill.held(f"{late[0] - early[0]} more handles, {growth:.2f} MB more for each search")
