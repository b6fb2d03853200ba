import json
import os
import statistics
import subprocess
import sys
import time
from urllib.parse import parse_qsl

import pytest

from krscale.errors import UserError
from krscale.tracking import Tracker, sync
from krscale.tracking.models import HASH_TAG
from krscale.tracking.spool import Event, encode_event

START = {"name": "a", "parent": None, "tags": {}, "params": {}}


def search(tracker, num_trials=2, num_epochs=3):
    """Record what a small search records."""
    tags = {"krscale.method": "kr", "krscale.kind": "search"}
    tracker.start_run("kr", "digits kr", tags=tags, params={"trials": 2})
    for i in range(num_trials):
        key = f"kr/1-16/trial-{i}"
        tracker.start_run(key, f"kr G={i} cap=1/16", parent="kr", params={"lr": 0.1, "taps": [1]})
        for epoch in range(num_epochs):
            tracker.log_metrics(key, {"val/accuracy": epoch / 10, "loss": 1.0 - i}, step=epoch)
        tracker.end_run(key, ["COMPLETE", "PRUNED", "FAIL"][i % 3])
    tracker.log_metrics("kr", {"curve/test_accuracy": 0.75}, step=123_456)
    tracker.end_run("kr")


EXPECTED_TRIAL = sorted(
    [("val/accuracy", epoch / 10, epoch) for epoch in range(3)]
    + [("loss", 1.0, epoch) for epoch in range(3)]
)


def check_search(by_key, database, num_trials=2):
    runs = by_key(database)
    assert set(runs) == {"kr", *(f"kr/1-16/trial-{i}" for i in range(num_trials))}
    trial = runs["kr/1-16/trial-0"]
    assert trial.metrics == EXPECTED_TRIAL
    assert trial.params == {"lr": "0.1", "taps": "[1]"}
    assert trial.tags["mlflow.parentRunId"] == runs["kr"].id
    assert "mlflow.parentRunId" not in runs["kr"].tags
    assert runs["kr"].metrics == [("curve/test_accuracy", 0.75, 123_456)]
    return runs


def test_a_search_is_recorded_whole(storage, warnings_told, by_key):
    tracker = Tracker("", "digits", storage / "run", warn=warnings_told.append)
    search(tracker, num_trials=3)
    figure = storage / "run" / "curve.png"
    figure.write_bytes(b"png")
    tracker.log_artifact("kr", figure)
    tracker.log_artifact("kr", storage / "run" / "tracking", "folder/below")
    tracker.set_tags("kr", {"note": "a"})
    tracker.set_tags("kr", {"note": "b", "number": 3})
    assert tracker.close(30) == 0
    assert warnings_told == []
    runs = check_search(by_key, storage / "mlflow.db", num_trials=3)
    states = [(run.status, run.tags["krscale.state"], run.name) for _, run in sorted(runs.items())]
    assert states == [
        ("FINISHED", "COMPLETE", "digits kr"),
        ("FINISHED", "COMPLETE", "kr G=0 cap=1/16"),
        ("KILLED", "PRUNED", "kr G=1 cap=1/16"),
        ("FAILED", "FAIL", "kr G=2 cap=1/16"),
    ]
    assert {"note": "b", "number": "3", "krscale.method": "kr"}.items() <= runs["kr"].tags.items()
    artifacts = next((storage / "mlartifacts").glob(f"{runs['kr'].id}/artifacts"))
    assert (artifacts / "curve.png").read_bytes() == b"png"
    assert (artifacts / "folder" / "below" / "spool.jsonl").is_file()


def test_mlflow_itself_reads_what_was_recorded(storage):
    from mlflow import MlflowClient

    with Tracker("", "digits", storage / "run") as tracker:
        search(tracker)
    command, address = tracker.how_to_open()
    uri = command.rpartition(" ")[2]
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("digits")
    place, _, view = address.partition("?")
    assert place == f"http://127.0.0.1:5000/#/experiments/{experiment.experiment_id}/runs"
    asked = dict(parse_qsl(view))
    assert asked["workflowType"] == "machine_learning"
    assert asked["compareRunsMode"] == "CHART"
    tops = client.search_runs([experiment.experiment_id], asked["searchFilter"])
    assert [run.info.run_name for run in tops] == ["digits kr"], "the curves, and no trial"
    children = client.search_runs(
        [experiment.experiment_id], "tags.`krscale.state` = 'PRUNED'", max_results=10
    )
    assert [run.info.run_name for run in children] == ["kr G=1 cap=1/16"]
    history = client.get_metric_history(children[0].info.run_id, "val/accuracy")
    assert [(m.step, m.value) for m in history] == [(0, 0.0), (1, 0.1), (2, 0.2)]


def test_a_second_tracker_on_the_folder_continues_and_doubles_nothing(storage, by_key):
    for _ in range(2):
        with Tracker("", "digits", storage / "run") as tracker:
            search(tracker)
    check_search(by_key, storage / "mlflow.db")
    with Tracker("", "digits", storage / "run") as tracker:
        tracker.start_run("kr", "digits kr", tags={"krscale.commit": "new"})
        tracker.log_metrics("kr/1-16/trial-0", {"val/accuracy": 0.9}, step=3)
    runs = by_key(storage / "mlflow.db")
    assert runs["kr"].status == "RUNNING"
    assert runs["kr"].tags["krscale.commit"] == "new"
    assert ("val/accuracy", 0.9, 3) in runs["kr/1-16/trial-0"].metrics


def test_a_lost_or_older_state_doubles_nothing(storage, by_key):
    state = storage / "run" / "tracking" / "state.json"
    with Tracker("", "digits", storage / "run") as tracker:
        tracker.start_run("kr", "digits kr")
        assert tracker.close() == 0
    older = state.read_bytes()
    with Tracker("", "digits", storage / "run") as tracker:
        search(tracker)
    for content in (older, b"{", None):
        state.unlink()
        if content is not None:
            state.write_bytes(content)
        assert Tracker("", "digits", storage / "run").close() == 0
        check_search(by_key, storage / "mlflow.db")


def test_two_folders_with_the_same_keys_are_two_searches(storage, read_runs):
    for name in ("first", "second"):
        with Tracker("", "digits", storage / name) as tracker:
            search(tracker)
    runs = read_runs(storage / "mlflow.db")
    assert len(runs) == 6
    assert len({run.tags["krscale.spool"] for run in runs}) == 2


def test_a_new_database_gets_the_whole_story(storage, empty_database, by_key, read_runs):
    # Another process, because MLflow keeps the old file open for as long as a process lives.
    first = (
        "import sys; from pathlib import Path; from krscale.tracking import Tracker\n"
        "with Tracker('', 'digits', Path(sys.argv[1])) as tracker: tracker.start_run('kr', 'old')"
    )
    subprocess.run([sys.executable, "-c", first, str(storage / "run")], check=True, timeout=60)
    assert [run.name for run in read_runs(storage / "mlflow.db")] == ["old"]
    (storage / "mlflow.db").write_bytes(empty_database.read_bytes())
    with Tracker("", "digits", storage / "run") as tracker:
        search(tracker)
    check_search(by_key, storage / "mlflow.db")
    other = storage / "other.db"
    other.write_bytes(empty_database.read_bytes())
    assert sync(storage / "run", f"sqlite:///{other}") == 0
    check_search(by_key, other)


def test_a_run_whose_place_was_taken_gets_no_file_of_the_other(storage, empty_database, by_key):
    """Sent to another server after an extension, the former search got the present curve."""
    curve, other = storage / "run" / "curve.json", storage / "other.db"
    for key in ("kr", "kr:2"):
        with Tracker("", "digits", storage / "run") as tracker:
            tracker.start_run(key, key)
            curve.write_text(key)
            tracker.log_artifact(key, curve)
    other.write_bytes(empty_database.read_bytes())
    assert sync(storage / "run", f"sqlite:///{other}") == 0
    for database, expected in ((storage / "mlflow.db", ["kr", "kr:2"]), (other, [None, "kr:2"])):
        files = [
            storage / "mlartifacts" / by_key(database)[key].id / "artifacts" / "curve.json"
            for key in ("kr", "kr:2")
        ]
        assert [file.read_text() if file.exists() else None for file in files] == expected
    assert not (storage / "run" / "tracking" / "refused.jsonl").exists()


def test_values_that_are_not_finite_become_tags(storage, by_key):
    with Tracker("", "digits", storage / "run") as tracker:
        tracker.start_run("a", "a")
        tracker.log_metrics("a", {"loss": float("nan"), "acc": 0.5, "x": float("-inf")}, step=7)
        tracker.log_metrics("a", {"loss": float("nan")}, step=8)
    run = by_key(storage / "mlflow.db")["a"]
    assert run.metrics == [("acc", 0.5, 7)]
    assert run.tags["krscale.nonfinite.loss"] == "nan at step 8"
    assert run.tags["krscale.nonfinite.x"] == "-inf at step 7"


@pytest.mark.parametrize("kind", ["params", "tags"])
def test_a_value_that_mlflow_cuts_is_said_once_and_kept_whole(storage, warnings_told, by_key, kind):
    long = "".join(f"{number:05}" for number in range(2_000))
    values = {"names": long, "more": long}
    with Tracker("", "digits", storage / "run", warn=warnings_told.append) as tracker:
        for key in ("kr", "kd"):
            tracker.start_run(key, key, params=values if kind == "params" else None)
            if kind == "tags":
                tracker.set_tags(key, values)
    recorded = by_key(storage / "mlflow.db")["kr"]
    kept = (recorded.params if kind == "params" else recorded.tags)["names"]
    assert long.startswith(kept)
    assert len(kept) < len(long)
    assert len(warnings_told) == 1, warnings_told
    name = "param" if kind == "params" else "tag"
    assert f"MLflow keeps the first {len(kept):,} characters of {name} names" in warnings_told[0]
    assert "has 10,000" in warnings_told[0]
    spool = storage / "run" / "tracking" / "spool.jsonl"
    assert str(spool) in warnings_told[0]
    assert long in spool.read_text()


def test_what_mlflow_refuses_holds_up_nothing_else(storage, warnings_told, by_key):
    with Tracker("", "digits", storage / "run", warn=warnings_told.append) as tracker:
        tracker.start_run("a", "a", params={"lr": 0.1, "depth": 1})
        tracker.start_run("a", "a", params={"lr": 0.2, "depth": 1, "late": "yes"})
        tracker.log_metrics("a", {"good": 1.0}, step=0)
        tracker.log_metrics("a", {"../bad": 1.0}, step=0)
        tracker.log_metrics("a", {"far": 1.0}, step=2**70)
        tracker.log_metrics("a", {"good": 2.0}, step=1)
        tracker.log_artifact("a", storage / "nothing-here")
        tracker.start_run("b", "b")
        assert tracker.close() == 0
    runs = by_key(storage / "mlflow.db")
    assert runs["a"].params == {"lr": "0.1", "depth": "1", "late": "yes"}
    assert runs["a"].metrics == [("good", 1.0, 0), ("good", 2.0, 1)]
    assert "b" in runs
    assert len(warnings_told) == 1
    assert "Changing param values is not allowed" in warnings_told[0]
    lines = (storage / "run" / "tracking" / "refused.jsonl").read_text().splitlines()
    refused = [json.loads(line) for line in lines]
    assert [line["what"] for line in refused] == ["params", "metrics", "metrics", "artifact"]
    assert refused[0]["items"] == [["lr", "0.2"]]
    assert [line["items"][0][0] for line in refused[1:3]] == ["../bad", "far"]


@pytest.mark.parametrize("op", ["artifact", "model"])
def test_a_record_of_a_stranger_sends_no_file_of_elsewhere(op, storage, by_key):
    """A run folder may come with any record; sending it must not upload other files of the user."""
    canary = storage / "canary" / "secret.txt"
    canary.parent.mkdir()
    canary.write_text("c4n4ry")
    run = storage / "run"
    (run / "a").mkdir(parents=True)
    paths = (
        str(canary), str(canary.parent), "../canary", "../canary/secret.txt", "a/../../canary",
        "..", ".//..//canary", "../run/../canary", "../run2", "/", "/proc/self/environ", "a\0b",
        "a" * 300, "a/" * 3000,
    )  # fmt: skip
    registration = {"name": "n", "alias": "a", "tags": {HASH_TAG: "1"}, "description": ""}
    events = [Event("spool", "1" * 32, 0), Event("start", "kr", 1, START)]
    for path in paths:
        content = {"path": path, "to": ""} if op == "artifact" else {
            "path": path, "registration": registration
        }  # fmt: skip
        events.append(Event(op, "kr", 2, content))
    places = ("../../canary", "/canary", "a/../../..", str(canary.parent))
    if op == "artifact":
        events += [Event(op, "kr", 2, {"path": "a", "to": place}) for place in places]
        paths += places
    events.append(Event("end", "kr", 3, {"status": "COMPLETE"}))
    (run / "a" / "file.txt").write_text("drawn")
    (run / "tracking").mkdir()
    (run / "tracking" / "spool.jsonl").write_bytes(b"".join(map(encode_event, events)))
    assert sync(run, warn=lambda _: None) == 0
    assert by_key(storage / "mlflow.db")["kr"].status == "FINISHED", "what came after them is there"
    lines = (run / "tracking" / "refused.jsonl").read_text().splitlines()
    assert len(lines) == len(paths)
    found = [path for path in storage.rglob("*.txt") if path.is_file()]
    assert sorted(found) == [canary, run / "a" / "file.txt"]


def test_one_process_records_a_run_at_a_time(storage):
    first = Tracker("", "digits", storage / "run")
    with pytest.raises(UserError, match="another process is recording this run"):
        Tracker("", "digits", storage / "run")
    first.close()
    assert first.close() == 0
    assert Tracker("", "digits", storage / "run").close() == 0


def test_mistakes_of_the_caller_are_told_at_once(storage, by_key):
    with Tracker("", "digits", storage / "run") as tracker:
        tracker.start_run("a", "a")
        with pytest.raises(ValueError, match="no run was started with the key 'b'"):
            tracker.log_metrics("b", {"x": 1.0}, step=0)
        with pytest.raises(ValueError, match="no run was started with the key 'b'"):
            tracker.start_run("c", "c", parent="b")
        with pytest.raises(ValueError, match="a key is made of"):
            tracker.start_run("it's", "a")
        with pytest.raises(ValueError, match="unknown status 'DONE'"):
            tracker.end_run("a", "DONE")
        with pytest.raises(ValueError, match="MLflow allows"):
            tracker.log_metrics("a", {"acc@5": 1.0}, step=0)
    assert by_key(storage / "mlflow.db")["a"].metrics == []


def test_secrets_reach_neither_mlflow_nor_the_disk_nor_the_terminal(storage, monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cr3t-env")
    with Tracker("", "digits", storage / "run") as tracker:
        tracker.start_run(
            "a", "name s3cr3t-env", tags={"uri": "http://u:s3cr3t-pw@h"},
            params={"x": {"db": "postgresql://u:s3cr3t-pw@h/d?password=s3cr3t-pw"}},
        )  # fmt: skip
    with Tracker("http://u:s3cr3t-pw@127.0.0.1:9", "digits", storage / "run") as tracker:
        assert tracker.how_to_open() == ("", "http://***@127.0.0.1:9")
        assert tracker.close(5) > 0
    files = [p for p in (storage / "run").rglob("*") if p.is_file()]
    assert len(files) > 1
    for file in [*files, storage / "mlflow.db"]:
        assert b"s3cr3t" not in file.read_bytes(), file
    out, err = capfd.readouterr()
    assert "s3cr3t" not in out + err
    assert "MLflow at http://***@127.0.0.1:9 cannot be used" in err
    with pytest.raises(UserError, match="credentials are not kept"):
        sync(storage / "run")


def test_nothing_but_one_line_reaches_the_terminal_while_mlflow_is_away(tmp_path, capfd):
    tracker = Tracker("http://127.0.0.1:9", "digits", tmp_path / "run")
    search(tracker)
    started = time.monotonic()
    assert tracker.close(100) == 13
    assert time.monotonic() - started < 80, "a refused connection is not waited for"
    out, err = capfd.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("krscale: MLflow at http://127.0.0.1:9 cannot be used (")
    assert "refused" in lines[0]
    assert str(tmp_path / "run" / "tracking" / "spool.jsonl") in lines[0]
    assert f"krscale sync {tmp_path / 'run'}" in lines[0]


def test_what_was_recorded_while_away_is_sent_by_the_next_start(storage, by_key):
    away = Tracker("http://127.0.0.1:9", "digits", storage / "run", warn=print)
    search(away)
    assert away.close(5) > 0
    assert Tracker("", "digits", storage / "run").close() == 0
    check_search(by_key, storage / "mlflow.db")


def test_a_fresh_database_is_initialised_quietly(tmp_path, capfd, by_key):
    with Tracker("", "digits", tmp_path / "run") as tracker:
        search(tracker)
        assert tracker.close(60) == 0
    check_search(by_key, tmp_path / "mlflow.db")
    assert capfd.readouterr() == ("", "")


def test_an_older_database_names_the_command_that_upgrades_it(storage, warnings_told):
    import sqlite3

    with sqlite3.connect(storage / "mlflow.db") as database:
        database.execute("update alembic_version set version_num = '451aebb31d03'")
    database.close()
    tracker = Tracker("", "digits", storage / "run", warn=warnings_told.append)
    search(tracker)
    assert tracker.close(5) > 0
    assert len(warnings_told) == 1
    assert f"mlflow db upgrade sqlite:///{storage}/mlflow.db" in warnings_told[0]


def test_the_users_own_mlflow_settings_win(storage, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "33")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with Tracker("", "digits", storage / "run") as tracker:
        search(tracker)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "33"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"


def test_a_call_costs_microseconds_even_when_the_server_never_answers(tmp_path, record_property):
    # 192.0.2.1 is reserved for documentation: nothing answers.
    tracker = Tracker("http://192.0.2.1:5000", "digits", tmp_path / "run", warn=print)
    tracker.start_run("a", "a")
    metrics = {"loss": 0.1, "val/accuracy": 0.5, "val/loss": 0.2}
    times = []
    for step in range(3000):
        started = time.perf_counter()
        tracker.log_metrics("a", metrics, step)
        times.append(time.perf_counter() - started)
    median = statistics.median(times) * 1e6
    record_property("microseconds_per_call", median)
    print(f"{median:.1f} microseconds per call, worst {max(times) * 1e6:.0f}")
    assert median < 5000, "a call to a server takes 70,000"
    started = time.monotonic()
    assert tracker.close(0.5) == 3001
    assert time.monotonic() - started < 60, "MLflow's own client waits for 245"


def test_a_disabled_tracker_leaves_no_trace(tmp_path):
    with Tracker("", "digits", tmp_path / "run", enabled=False) as tracker:
        tracker.log_metrics("of an earlier start", {"accuracy": 0.5}, step=1)
        search(tracker)
        tracker.log_artifact("kr", tmp_path)
        assert tracker.close() == 0
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_records_cannot_be_synchronised(tmp_path):
    with pytest.raises(UserError, match="nothing was recorded here"):
        sync(tmp_path / "run")
    assert not (tmp_path / "run").exists()
