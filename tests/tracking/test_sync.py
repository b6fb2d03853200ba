"""The command that sends MLflow what a run recorded while MLflow was unreachable."""

import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest
from mlflow import MlflowClient
from running import in_process

from krscale.tracking import Tracker
from krscale.tracking.position import State

main = in_process("sync")


@pytest.fixture
def run(storage):
    """A run whose MLflow was unreachable all the time."""
    tracker = Tracker("http://127.0.0.1:9", "digits", storage / "run", warn=lambda _: None)
    tracker.start_run("kr", "digits kr")
    tracker.log_metrics("kr", {"val/accuracy": 0.5}, step=3)
    tracker.end_run("kr")
    assert tracker.close(5) == 3
    return storage / "run"


def test_events_reach_the_place_that_is_given_and_only_once(run, storage, by_key, capsys):
    arguments = ["run", "--storage-path", str(storage), "--uri", f"sqlite:///{storage}/mlflow.db"]
    for _ in range(2):
        assert main(arguments) == 0
        assert capsys.readouterr().out == f"{run}: MLflow has every event.\n"
    recorded = by_key(storage / "mlflow.db")
    assert set(recorded) == {"kr"}
    assert recorded["kr"].metrics == [("val/accuracy", 0.5, 3)]
    assert recorded["kr"].status == "FINISHED"


def test_what_stays_unsent_is_said_and_is_exit_code_1(run, capsys):
    assert main([str(run), "--timeout", "2"]) == 1
    out, err = capsys.readouterr()
    assert f"{run}: MLflow has not confirmed 3 events; run the same command again" in out
    assert "cannot be used" in err


def test_what_mlflow_refuses_is_named_and_no_error(storage, capsys):
    """It said that MLflow has every event, once another process had told of the refusal."""
    folder = storage / "run"
    with Tracker("", "digits", folder, warn=lambda _: None) as tracker:
        tracker.start_run("kr", "kr", params={"rate": 0.1})
        tracker.start_run("kr", "kr", params={"rate": 0.2})
    assert main([str(folder)]) == 0
    listed = folder / "tracking" / "refused.jsonl"
    assert listed.is_file()
    assert capsys.readouterr().out == (
        f"{folder}: MLflow has every event, except what it refused (1, listed in {listed}).\n"
    )


def test_a_run_that_does_not_exist_is_not_made(tmp_path, capsys):
    assert main(["nowhere", "--storage-path", str(tmp_path)]) == 2
    assert "nowhere: no such run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seconds", ["inf", "nan", "-1", "1e300", "soon"])
def test_a_time_that_nobody_waits_is_refused(seconds, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["digits", f"--timeout={seconds}"])
    assert ended.value.code == 2
    assert "argument --timeout: " in capsys.readouterr().err


def test_help_answers_without_mlflow():
    code = "import sys; from krscale.cli.app import main\n"
    code += "try:\n    main(['sync', '--help'])\nfinally:\n"
    code += "    assert 'mlflow' not in sys.modules and 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--uri" in done.stdout


class TestWhatIsGoneFromMlflow:
    """`krscale sync` sends it again, once."""

    @pytest.fixture
    def run(self, storage):
        with Tracker("", "digits", storage / "run") as tracker:
            tracker.start_run("kr", "digits kr", params={"c": 1})
            tracker.start_run("kr/1", "trial", parent="kr")
            for epoch in range(3):
                tracker.log_metrics("kr/1", {"accuracy": epoch / 4}, step=epoch)
            tracker.end_run("kr/1")
            tracker.end_run("kr")
            assert tracker.close(30) == 0
        return storage / "run"

    def check(self, run, by_key, capsys):
        assert main([str(run)]) == 0
        out, err = capsys.readouterr()
        assert out == f"{run}: MLflow has every event.\n"
        runs = by_key(run.parent / "mlflow.db")
        assert set(runs) == {"kr", "kr/1"}
        assert runs["kr/1"].metrics == [("accuracy", n / 4, n) for n in range(3)]
        assert runs["kr/1"].tags["mlflow.parentRunId"] == runs["kr"].id
        assert runs["kr/1"].status == runs["kr"].status == "FINISHED"
        assert runs["kr"].params == {"c": "1"}
        return err

    def test_nothing(self, run, by_key, capsys):
        assert self.check(run, by_key, capsys) == ""

    def test_the_database(self, run, empty_database, by_key, capsys):
        # MLflow's engine keeps the file open: it is emptied, instead of replaced by a new one.
        with closing(sqlite3.connect(run.parent / "mlflow.db")) as database, database:
            for table in ("tags", "params", "latest_metrics", "metrics", "runs", "experiments"):
                database.execute(f"delete from {table}")
        self.check(run, by_key, capsys)

    @pytest.mark.parametrize("key", ["kr", "kr/1"])
    def test_a_run(self, key, run, by_key, capsys):
        gone = by_key(run.parent / "mlflow.db")[key].id
        MlflowClient(f"sqlite:///{run.parent / 'mlflow.db'}").delete_run(gone)
        with closing(sqlite3.connect(run.parent / "mlflow.db")) as database, database:
            (stage,) = database.execute(
                "select lifecycle_stage from runs where run_uuid = ?", (gone,)
            ).fetchone()
            assert stage == "deleted"
            database.execute("delete from tags where run_uuid = ?", (gone,))  # as `mlflow gc`
            database.execute("delete from params where run_uuid = ?", (gone,))
            database.execute("delete from latest_metrics where run_uuid = ?", (gone,))
            database.execute("delete from metrics where run_uuid = ?", (gone,))
            database.execute("delete from runs where run_uuid = ?", (gone,))
        err = self.check(run, by_key, capsys)
        assert "lacks 1 of the runs it was sent, and values of 0 others" in err
        assert self.check(run, by_key, capsys) == ""

    def test_values_since_a_backup(self, run, by_key, capsys):
        with closing(sqlite3.connect(run.parent / "mlflow.db")) as database, database:
            database.execute("delete from metrics where step = 2")
            database.execute("update latest_metrics set value = 0.25, step = 1")
        err = self.check(run, by_key, capsys)
        assert "lacks 0 of the runs it was sent, and values of 1 others" in err

    def test_an_experiment_is_said_and_its_runs_come_with_a_new_one(self, run, by_key, capsys):
        client = MlflowClient(f"sqlite:///{run.parent / 'mlflow.db'}")
        client.delete_experiment(client.get_experiment_by_name("digits").experiment_id)
        assert main([str(run), "--timeout", "2"]) == 1
        out, err = capsys.readouterr()
        assert "its experiment 'digits' is deleted; restore it there" in err
        assert "MLflow has not confirmed 7 events" in out
        with closing(sqlite3.connect(run.parent / "mlflow.db")) as database, database:
            for table in ("tags", "params", "latest_metrics", "metrics", "runs"):
                database.execute(f"delete from {table}")
            database.execute("delete from experiments where name = 'digits'")
        self.check(run, by_key, capsys)

    @pytest.mark.parametrize("what", ["experiment", "run"])
    def test_what_was_in_the_bin_for_a_while(self, what, run, by_key):
        client = MlflowClient(f"sqlite:///{run.parent / 'mlflow.db'}")
        number = by_key(run.parent / "mlflow.db")["kr/1"].id
        if what == "experiment":
            number = client.get_experiment_by_name("digits").experiment_id
        said = []
        with Tracker("", "digits", run, warn=said.append) as tracker:
            tracker.log_metrics("kr/1", {"accuracy": 1.0}, step=7)
            while not any(m[2] == 7 for m in by_key(run.parent / "mlflow.db")["kr/1"].metrics):
                time.sleep(0.05)
            getattr(client, f"delete_{what}")(number)
            tracker.log_metrics("kr/1", {"accuracy": 1.5, "loss": 0.5}, step=8)
            tracker.close(2)
        assert "deleted" in said[0]
        getattr(client, f"restore_{what}")(number)
        assert main([str(run)]) == 0
        points = by_key(run.parent / "mlflow.db")["kr/1"].metrics
        assert [m for m in points if m[2] > 6] == [
            ("accuracy", 1.0, 7), ("accuracy", 1.5, 8), ("loss", 0.5, 8)
        ]  # fmt: skip
        assert len(points) == len(set(points))

    def test_a_server_that_does_not_answer_is_not_said_to_have_it(self, storage, capsys):
        other = Tracker("http://127.0.0.1:9", "digits", storage / "run", warn=lambda _: None)
        other.start_run("kr", "digits kr")
        other.close(2)
        folder = storage / "run" / "tracking"
        state = State.load(folder, print)
        state.model_copy(update={"position": (folder / "spool.jsonl").stat().st_size}).write(folder)
        assert main([str(storage / "run"), "--timeout", "2"]) == 1
        assert "MLflow has not confirmed 1 events" in capsys.readouterr().out
