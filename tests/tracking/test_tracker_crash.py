"""The process that records is killed in the middle, again and again; nothing is lost or doubled."""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

from krscale.tracking import Tracker, sync

NUM_TRIALS, NUM_EPOCHS = 20, 4

SEARCH = f"""
import time
def search(tracker):
    tracker.start_run("kr", "digits kr")
    for trial in range({NUM_TRIALS}):
        key = f"kr/1-16/trial-{{trial}}"
        tracker.start_run(key, f"trial {{trial}}", parent="kr", params={{"lr": trial / 100}})
        for epoch in range({NUM_EPOCHS}):
            tracker.log_metrics(key, {{"val/accuracy": trial / 100 + epoch, "loss": 1.0}}, epoch)
            time.sleep(0.005)
        tracker.end_run(key, "PRUNED" if trial % 2 else "COMPLETE")
        tracker.log_metrics("kr", {{"curve/test_accuracy": trial / 100}}, step=trial)
    tracker.end_run("kr")
"""
CHILD = f"""{SEARCH}
import sys
from pathlib import Path
from krscale.tracking import Tracker
tracker = Tracker("", "digits", Path(sys.argv[1]))
search(tracker)
tracker.close(60)
"""


def count(database, table):
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=20)) as connection:
        return connection.execute(f"select count(*) from {table}").fetchone()[0]


def start(storage):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(storage / "run")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def kill_when(process, reached):
    deadline = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, f"ended before it was killed: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_kills_in_the_middle_lose_and_double_nothing(storage, by_key):
    database, run_path = storage / "mlflow.db", storage / "run"
    kill_when(start(storage), lambda: count(database, "runs") >= 1)
    assert count(database, "runs") < NUM_TRIALS + 1, "the kill was not in the middle"
    metrics = count(database, "metrics")
    kill_when(start(storage), lambda: count(database, "metrics") > metrics)

    # What the killed processes had told reaches MLflow, though none of them lives.
    started = set()
    for line in (run_path / "tracking" / "spool.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["op"] == "start":
            started.add(event["key"])
    assert sync(run_path) == 0
    runs = by_key(database)
    assert set(runs) == started
    assert runs["kr"].status == "RUNNING"

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
