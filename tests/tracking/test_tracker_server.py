"""A real MLflow server that is down at first, starts later, and stops again."""

import pytest
from mlflow_server import MlflowServer, free_port, wait_for

from krscale.tracking import Tracker, sync

pytestmark = pytest.mark.cluster


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
