"""A real MLflow server that is down at first, comes later, and goes away again."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from krscale.tracking import Tracker, sync

pytestmark = pytest.mark.cluster


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


class MlflowServer:
    def __init__(self, folder, port):
        self.folder, self.port, self.process = folder, port, None
        self.uri = f"http://127.0.0.1:{port}"

    def start(self):
        environment = {
            **os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }  # fmt: skip
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1",
                "--port", str(self.port), "--workers", "1",
                "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db",
                "--artifacts-destination", str(self.folder / "served"),
            ],
            env=environment, cwd=self.folder, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_for(self.answers)

    def answers(self):
        assert self.process.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def stop(self):
        if self.process is not None:
            os.killpg(self.process.pid, 9)
            self.process.wait(30)
            self.process = None


@pytest.fixture
def server(storage):
    server = MlflowServer(storage, free_port())
    yield server
    server.stop()


def record_trial(tracker, number):
    key = f"kr/1-16/trial-{number}"
    tracker.start_run(key, f"trial {number}", parent="kr", params={"lr": 0.1})
    for epoch in range(5):
        tracker.log_metrics(key, {"val/accuracy": epoch / 10}, epoch)
    tracker.end_run(key, "COMPLETE")


def test_a_server_that_comes_goes_and_returns(
    server, storage, by_key, warnings_told, capfd, monkeypatch
):
    monkeypatch.setattr("krscale.tracking.writer._LONGEST_PAUSE", 1.0)
    tracker = Tracker(server.uri, "digits", storage / "run", warn=warnings_told.append)
    tracker.start_run("kr", "digits kr")
    record_trial(tracker, 0)
    wait_for(lambda: warnings_told)
    assert "cannot be used" in warnings_told[0]
    assert by_key(storage / "mlflow.db") == {}

    server.start()
    figure = storage / "run" / "curve.png"
    figure.write_bytes(b"png")
    tracker.log_artifact("kr", figure)
    tracker.log_metrics("kr", {"nan": float("nan"), "curve/test_accuracy": 0.5}, step=1000)
    wait_for(lambda: len(by_key(storage / "mlflow.db")) == 2)
    wait_for(lambda: len(warnings_told) == 2)
    assert list((storage / "served").rglob("curve.png"))

    tracker.log_metrics("kr", {"far": 1.0}, step=2**70)
    wait_for(lambda: len(warnings_told) == 3)
    assert "MLflow refused metrics of kr" in warnings_told[2]

    server.stop()
    record_trial(tracker, 1)
    wait_for(lambda: len(warnings_told) == 4)
    assert tracker.close(1) == 7
    assert warnings_told[1] == f"MLflow at {server.uri} is back; nothing was lost."
    assert "cannot be used" in warnings_told[3]

    server.start()
    assert sync(storage / "run") == 0
    runs = by_key(storage / "mlflow.db")
    assert set(runs) == {"kr", "kr/1-16/trial-0", "kr/1-16/trial-1"}
    for number in (0, 1):
        trial = runs[f"kr/1-16/trial-{number}"]
        assert trial.metrics == [("val/accuracy", epoch / 10, epoch) for epoch in range(5)]
        assert trial.status == "FINISHED"
        assert trial.tags["mlflow.parentRunId"] == runs["kr"].id
    assert runs["kr"].metrics == [("curve/test_accuracy", 0.5, 1000)]
    assert runs["kr"].tags["krscale.nonfinite.nan"] == "nan at step 1000"
    stored = [path.read_bytes() for path in (storage / "served").rglob("curve.png")]
    assert stored == [b"png"]
    assert len(warnings_told) == 4
    assert capfd.readouterr() == ("", "")
