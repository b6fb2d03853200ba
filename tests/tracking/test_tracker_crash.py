"""The process that records is killed in the middle, again and again; nothing is lost or doubled."""

import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

NUM_TRIALS, NUM_EPOCHS = 30, 5

CHILD = f"""
import sys, time
from pathlib import Path
from krscale.tracking import Tracker

tracker = Tracker("", "digits", Path(sys.argv[1]))
tracker.start_run("kr", "digits kr")
for trial in range({NUM_TRIALS}):
    key = f"kr/1-16/trial-{{trial}}"
    tracker.start_run(key, f"trial {{trial}}", parent="kr", params={{"lr": trial / 100}})
    for epoch in range({NUM_EPOCHS}):
        tracker.log_metrics(key, {{"val/accuracy": trial / 100 + epoch, "loss": 1.0}}, epoch)
        time.sleep(0.002)
    tracker.end_run(key, "PRUNED" if trial % 2 else "COMPLETE")
    tracker.log_metrics("kr", {{"curve/test_accuracy": trial / 100}}, step=trial)
tracker.end_run("kr")
print("unsent", tracker.close(60))
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
    deadline = time.monotonic() + 60
    while not reached():
        assert process.poll() is None, f"ended before it was killed: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_kills_in_the_middle_lose_and_double_nothing(storage, by_key):
    database = storage / "mlflow.db"
    seen = []
    for table, more in (("runs", 1), ("runs", 5), ("metrics", 20)):
        before = count(database, table)
        kill_when(start(storage), lambda t=table, n=before + more: count(database, t) >= n)
        seen.append((count(database, "runs"), count(database, "metrics")))
    assert 0 < seen[0][0] < NUM_TRIALS + 1, "the first kill was not in the middle"
    last = start(storage)
    out, err = last.communicate(timeout=90)
    assert (out, err, last.returncode) == ("unsent 0\n", "", 0)
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


def test_a_killed_process_leaves_its_events_to_the_next(storage, by_key):
    spool = storage / "run" / "tracking" / "spool.jsonl"
    process = start(storage)
    kill_when(process, lambda: spool.exists() and spool.read_bytes().count(b"\n") > 60)
    events = spool.read_bytes().count(b'"op":"start"')
    done = subprocess.run(
        [
            sys.executable, "-c",
            "import sys; from pathlib import Path; from krscale.tracking import sync;"
            "print(sync(Path(sys.argv[1])))",
            str(storage / "run"),
        ],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == "0\n"
    runs = by_key(storage / "mlflow.db")
    assert len(runs) == events > 2
    assert runs["kr"].status == "RUNNING"
