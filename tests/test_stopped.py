"""Commands that are stopped: what they leave, and that the same command goes on from there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from drilling import Drill
from finished_search import without_ray
from running import ROOT, SMALL, environment, here, overrides

from krscale.cluster.kept_training import SNAPSHOT
from krscale.search.studies.ladder import Ladder
from krscale.search.studies.trial_spec import Assignment

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

MESSAGE = "krscale: interrupted{by}; the same command again continues."
# A checkpoint after every report, and more epochs than a test waits for.
LONG = ("train.num_epochs=30", "search.early_stopping=none", "search.checkpoint_seconds=0")
TINY = (
    "search.methods=['plain']", "search.num_final_seeds=1", "ladder.capacities=['1/16']",
    "search.trials_per_size=1", "cluster.num_cpus=1",
)  # fmt: skip
KEPT_TEACHER = ("teacher.num_epochs=1", "views.num_views=1", "distill.probe_grid=4")
"""With these the teacher, its probes and the store of the fixture `searched` serve."""
SLOW_TEACHER = ("teacher.num_epochs=2000",)


@pytest.fixture
def storage(tmp_path: Path, empty_database: Path) -> Path:
    """A storage with an MLflow database, as every storage has after its first run."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return tmp_path


def _heed_interrupts() -> None:
    """Restore SIGINT, which processes ignore if a shell started the tests in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Command:
    """A command in a session of its own, as in a terminal, with its log."""

    def __init__(self, name: str, storage: Path, *settings: str, **env: str) -> None:
        self.arguments = overrides(*SMALL, f"storage_path={storage}", "name=stopped", *settings)
        self.log = storage / f"{name}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "krscale", name, *self.arguments],
                env=environment(**env), cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
                preexec_fn=_heed_interrupts,
            )  # fmt: skip

    @property
    def text(self) -> str:
        return self.log.read_text()

    def wait_until(self, begun: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300  # a guess: a busy machine takes 100 s to start Ray
        while not begun():
            assert self.process.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.05)

    def stop(self, stop: signal.Signals, *, group: bool = False, seconds: float = 60.0) -> str:
        """Send a signal; return the log of a command that then ended as it should."""
        (os.killpg if group else os.kill)(self.process.pid, stop)
        try:
            code = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise AssertionError(f"not ended after {seconds} s\n{self.text}") from None
        assert code == 128 + stop, self.text
        by = "" if stop is signal.SIGINT else f" by {stop.name}"
        # If a server does not answer, a further line may say that it is given up.
        assert MESSAGE.format(by=by) in self.text.splitlines(), self.text
        assert "Traceback" not in self.text
        assert "***" not in self.text, "Ray's own report of a fatal signal"
        return self.text

    def left_processes(self) -> str:
        """Processes of the session that outlive the command by about 10 s, except zombies."""
        left: list[str] = []
        for _ in range(50):
            command = ["ps", "-o", "stat=,pid=,args=", "-s", str(self.process.pid)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            left = [line for line in done.stdout.splitlines() if not line.startswith("Z")]
            if not left:
                break
            time.sleep(0.2)
        return "\n".join(left)


def mlflow_states(storage: Path) -> list[tuple[str, str]]:
    """Status and error of every run that MLflow has."""
    with sqlite3.connect(storage / "mlflow.db") as database:
        found = database.execute(
            "select r.status, coalesce(t.value, '') from runs r left join tags t "
            "on t.run_uuid = r.run_uuid and t.key = 'krscale.error'"
        ).fetchall()
    database.close()
    return found


def recorded_epochs(storage: Path) -> list[int]:
    """Epochs of all training losses in MLflow, with repetitions."""
    with sqlite3.connect(storage / "mlflow.db") as database:
        found = database.execute("select step from metrics where key = 'train/loss' order by step")
        steps = [int(step) for (step,) in found]
    database.close()
    return steps


class SeenError(Exception):
    """Ends a search that has been inspected."""


def look(ladder: Ladder, continued: list[str]) -> None:
    """Record from which trial's checkpoint the next one goes on, and stop."""
    upcoming = ladder.next()
    assert isinstance(upcoming, Assignment)
    continued.append(upcoming.continues)
    raise SeenError


@pytest.mark.parametrize(
    ("stop", "group", "to_the_end"),
    [
        pytest.param(signal.SIGTERM, False, False, id="SIGTERM"),
        pytest.param(signal.SIGTERM, False, True, id="to the end", marks=pytest.mark.drill),
        pytest.param(signal.SIGTERM, True, False, id="to the group", marks=pytest.mark.drill),
        pytest.param(signal.SIGHUP, False, False, id="SIGHUP", marks=pytest.mark.drill),
    ],
)
def test_a_search_keeps_and_marks_its_running_trials(
    stop: signal.Signals,
    group: bool,
    to_the_end: bool,
    storage: Path,
    searched: Path,
    drill: Drill,
) -> None:
    shutil.copytree(searched / "cache", storage / "cache")
    drill.injected(f"{stop.name} to a running search" + group * " and to its whole group")
    drill.must_hold("nothing is RUNNING in MLflow, no process is left, the same command goes on")
    command = Command("tune", storage, *LONG, *TINY, *KEPT_TEACHER)
    kept = "stopped/unfinished/*/*/*/manifest.json"
    command.wait_until(lambda: any(storage.glob(kept)))
    command.stop(stop, group=group)
    states = mlflow_states(storage)
    assert "RUNNING" not in {status for status, _ in states}
    assert ("FAILED", "interrupted: the search was interrupted") in states
    assert any(storage.glob(kept)), "the running trials' checkpoints"
    assert not command.left_processes()
    if not to_the_end:
        continued: list[str] = []
        with without_ray(lambda ladder, *_: look(ladder, continued)), pytest.raises(SeenError):
            here("tune", [*command.arguments, "--set", "search.gpus_per_trial=0"])
        assert continued == ["plain/1-16/trial-0"]
        drill.held("the next trial goes on from the checkpoint of the one that was stopped")
        return
    done = here("tune", ["--json", *command.arguments])
    assert done.returncode == 0, done.stderr
    spool = (storage / "stopped/tracking/spool.jsonl").read_text()
    assert json.loads(done.stdout)["sizes"]
    journal = (storage / "stopped/journal.log").read_text()
    assert '"continues"' in journal, "a trial went on from its checkpoint"
    assert spool.count('"op":"start"') >= 3
    drill.held("the search was completed, a trial from its checkpoint")


@pytest.mark.drill
def test_a_search_that_is_stopped_while_ray_starts(storage: Path, drill: Drill) -> None:
    drill.injected("SIGTERM while Ray starts")
    drill.must_hold("one line and the signal's exit code; no process is left, nothing is RUNNING")
    command = Command("tune", storage, *TINY)
    command.wait_until(lambda: "krscale: search" in command.text)
    time.sleep(0.7)
    command.stop(signal.SIGTERM)
    assert "RUNNING" not in {status for status, _ in mlflow_states(storage)}
    assert not command.left_processes()
    drill.held("one line, no process, nothing RUNNING")


@pytest.mark.drill
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_teach_is_stopped_before_there_is_any_ray(
    stop: signal.Signals, storage: Path, drill: Drill
) -> None:
    drill.injected(f"{stop.name} to the training of a teacher")
    drill.must_hold("one line and the signal's exit code; no process is left")
    command = Command("teach", storage, *SLOW_TEACHER)
    command.wait_until(lambda: "krscale: teacher" in command.text)
    command.stop(stop)
    assert not command.left_processes()
    drill.held("one line, no process")


# The suite tests the interruption in its own process: tests/runs/test_distill.py,
# test_interrupted_training_goes_on_to_the_same_weights.
@pytest.mark.drill
@pytest.mark.parametrize(
    ("stop", "num_workers", "num_epochs"),
    [
        (signal.SIGINT, 1, 30),
        (signal.SIGTERM, 2, 8),
    ],
)
def test_a_single_student_is_kept_and_marked(
    stop: signal.Signals, num_workers: int, num_epochs: int, storage: Path, drill: Drill
) -> None:
    drill.injected(f"{stop.name} to the training of a student by {num_workers} worker(s)")
    drill.must_hold("MLflow has it as interrupted; no process is left")
    workers = (f"train.num_workers={num_workers}", "cluster.num_cpus=2")
    settings = ("distill.capacity=1/16", f"train.num_epochs={num_epochs}", *workers)
    command = Command("distill", storage, *settings)
    # The first epoch's checkpoint. Its line comes only after 5 seconds, when a fast machine has
    # finished all epochs.
    command.wait_until(lambda: any(storage.glob("stopped-*/**/manifest.json")))
    command.stop(stop)
    assert mlflow_states(storage) == [("FAILED", "interrupted")]
    assert not command.left_processes()
    drill.held("interrupted, no process")
    drill.must_hold("the same command completes it")
    records = list(storage.glob(f"stopped-*/train/{SNAPSHOT}"))
    assert len(records) == num_workers - 1, "workers are Ray Train's"
    for record in records:
        record.write_bytes(b'{"checkpoint_results": [')
        drill.injected("half of Ray Train's record is lost")
    again = here("distill", ["--json", *command.arguments])
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("goes on from the newest whole one") == len(records), again.stderr
    assert mlflow_states(storage) == [("FINISHED", "")]
    assert recorded_epochs(storage) == list(range(1, num_epochs + 1))
    drill.held("the one run in MLflow is FINISHED, with every epoch once")


@pytest.mark.drill
def test_a_command_that_waits_for_mlflow_is_stopped_at_once(tmp_path: Path, drill: Drill) -> None:
    drill.injected("SIGTERM to a search that waits for an MLflow server which never answers")
    drill.must_hold("it ends within 30 s, no process is left, its curve is written")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        uri = f"tracking.uri=http://127.0.0.1:{silent.getsockname()[1]}"
        # The first request lasts until the end, however slowly the trials train.
        longer = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "300"}
        settings = (*TINY, "search.gpus_per_trial=0", uri)
        command = Command("tune", tmp_path, *settings, **longer)
        command.wait_until(lambda: "krscale: record" in command.text)
        command.stop(signal.SIGTERM, seconds=30)
    assert not command.left_processes()
    assert (tmp_path / "stopped/curve.json").exists()
    drill.held("it ended, with its curve")
