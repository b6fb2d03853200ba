"""The process that records is killed midway, repeatedly; nothing is lost or doubled."""

import json
import signal
import subprocess
import sys

import pytest

from krscale.tracking import Tracker, sync

NUM_TRIALS, NUM_EPOCHS = 20, 4

SEARCH = f"""
def search(tracker):
    tracker.start_run("kr", "digits kr")
    for trial in range({NUM_TRIALS}):
        key = f"kr/1-16/trial-{{trial}}"
        tracker.start_run(key, f"trial {{trial}}", parent="kr", params={{"lr": trial / 100}})
        for epoch in range({NUM_EPOCHS}):
            tracker.log_metrics(key, {{"val/accuracy": trial / 100 + epoch, "loss": 1.0}}, epoch)
        tracker.end_run(key, "PRUNED" if trial % 2 else "COMPLETE")
        tracker.log_metrics("kr", {{"curve/test_accuracy": trial / 100}}, step=trial)
    tracker.end_run("kr")
"""
CHILD = f"""{SEARCH}
import os, signal, sys
from pathlib import Path
from krscale.tracking import Tracker
from krscale.tracking.address import resolve_address
from krscale.tracking.server import Server, prepare_mlflow

prepare_mlflow(resolve_address("", Path(sys.argv[1]).parent))  # imports MLflow

def record(path, method, deadly):
    real, calls = getattr(Server, method), []
    def counted(*arguments):
        result = real(*arguments)
        calls.append(method)
        if len(calls) == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(Server, method, counted)
    tracker = Tracker("", "digits", path)
    search(tracker)
    tracker.close(60)

for line in sys.stdin:
    method, deadly = line.split()
    child = os.fork()
    if not child:
        record(Path(sys.argv[1]), method, int(deadly))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def die_after(storage):
    """Record a search in a process that is killed right after a given call to MLflow."""
    # All are forked from one process, which has done the imports.
    command = [sys.executable, "-c", CHILD, str(storage / "run")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as forking:

        def die(method, calls):
            print(method, calls, file=forking.stdin, flush=True)
            assert int(forking.stdout.readline()) == -signal.SIGKILL

        yield die
        forking.stdin.close()


def test_kills_in_the_middle_lose_and_double_nothing(storage, die_after, by_key):
    database, run_path = storage / "mlflow.db", storage / "run"
    # Killed after MLflow has created a run, and before its id is recorded here.
    die_after("create_run", 4)
    assert len(by_key(database)) == 4
    die_after("log", 12)
    assert 4 <= len(by_key(database)) < NUM_TRIALS + 1

    # What the killed processes had recorded reaches MLflow after their end.
    started = set()
    for line in (run_path / "tracking" / "spool.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["op"] == "start":
            started.add(event["key"])
    assert sync(run_path) == 0
    assert set(by_key(database)) == started

    names = {}
    exec(SEARCH, names)
    with Tracker("", "digits", run_path) as tracker:
        names["search"](tracker)
        assert tracker.close(60) == 0
    runs = by_key(database)
    assert len(runs) == NUM_TRIALS + 1
    curve = [("curve/test_accuracy", trial / 100, trial) for trial in range(NUM_TRIALS)]
    assert runs["kr"].metrics == curve
    assert runs["kr"].status == "FINISHED"
    for trial in range(NUM_TRIALS):
        run = runs[f"kr/1-16/trial-{trial}"]
        values = [("val/accuracy", trial / 100 + epoch, epoch) for epoch in range(NUM_EPOCHS)]
        assert run.metrics == sorted(values + [("loss", 1.0, epoch) for epoch in range(NUM_EPOCHS)])
        assert run.params == {"lr": str(trial / 100)}
        assert run.status == ("KILLED" if trial % 2 else "FINISHED")
        assert run.tags["mlflow.parentRunId"] == runs["kr"].id
