"""The command that tells MLflow what a run recorded while it was away."""

import subprocess
import sys

import pytest
from running import in_process

from krscale.tracking import Tracker

main = in_process("sync")


@pytest.fixture
def run(storage):
    """A run whose MLflow was away all the time."""
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
    assert f"{run}: 3 events are still unsent; the same command again goes on." in out
    assert "cannot be used" in err


def test_a_run_that_does_not_exist_is_not_made(tmp_path, capsys):
    assert main(["nowhere", "--storage-path", str(tmp_path)]) == 2
    assert "nowhere: no such run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_help_answers_without_mlflow():
    code = "import sys; from krscale.cli.app import main\n"
    code += "try:\n    main(['sync', '--help'])\nfinally:\n"
    code += "    assert 'mlflow' not in sys.modules and 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--uri" in done.stdout
