"""A search is recorded while its MLflow server answers 500, is slow, frozen, killed and back."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from drilling import Drill
from faulty_proxy import ERRORS, PASS, SLOW, FaultyProxy
from mlflow_server import MlflowServer, free_port
from recorded_training import NUM_EPOCHS, NUM_TRIALS, share_of_time, train

from krscale.tracking import Tracker, sync

pytestmark = [pytest.mark.drill, pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture
def server(storage: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(storage, free_port())
    server.start()
    yield server
    with suppress(ProcessLookupError):
        server.stop()


@pytest.fixture
def proxy(server: MlflowServer) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(server.port)
    yield proxy
    proxy.close()


def test_nothing_is_lost_or_doubled_and_training_goes_on(
    drill: Drill, server: MlflowServer, proxy: FaultyProxy, storage: Path,
    by_key: Callable[[Path], dict[str, Any]], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    drill.must_hold("training waits at most 5 % longer for its epochs")
    drill.must_hold("every point is in MLflow in the end, none twice")
    monkeypatch.setattr("krscale.tracking.writer._LONGEST_PAUSE", 0.5)  # more faults in that time
    tracker = Tracker(proxy.uri, "digits", storage / "run", warn=lambda _: None)
    tracker.start_run("kr", "digits kr")
    first, costs = 0, []

    def phase(mode: str = PASS) -> None:
        nonlocal first
        proxy.mode = mode
        costs.append(train(tracker, range(first, first + NUM_TRIALS)))
        first += NUM_TRIALS

    phase()
    phase(ERRORS)
    phase(SLOW)
    proxy.mode = PASS
    assert server.process is not None
    os.killpg(server.process.pid, signal.SIGSTOP)
    phase()
    os.killpg(server.process.pid, signal.SIGCONT)
    drill.injected("SIGSTOP to the server")
    server.stop()
    drill.injected("SIGKILL to the server")
    phase()
    server.start()
    phase(ERRORS)
    tracker.end_run("kr")
    tracker.close(1)
    proxy.mode = PASS
    assert sync(storage / "run") == 0

    for fault, number in proxy.faults.items():
        drill.injected(fault, number)
    share = share_of_time(costs, first)
    drill.measured("time that training spent on recording", 100 * share, "%")
    assert share < 0.05, share
    drill.held(f"it waited {100 * share:.2f} % longer")
    runs = by_key(storage / "mlflow.db")
    assert set(runs) == {"kr", *(f"kr/1-16/trial-{number}" for number in range(first))}
    for number in range(first):
        trial = runs[f"kr/1-16/trial-{number}"]
        assert trial.status == "FINISHED"
        assert [m for m in trial.metrics if m[0] == "val/accuracy"] == [
            ("val/accuracy", number + epoch / 10, epoch) for epoch in range(NUM_EPOCHS)
        ]
        assert len(trial.metrics) == 2 * NUM_EPOCHS
    drill.held(
        f"all {2 * first * NUM_EPOCHS} points of {first} runs, each once, after krscale sync"
    )
