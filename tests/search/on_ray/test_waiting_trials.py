"""The message when Ray has no room for any trial."""

from types import SimpleNamespace
from typing import Any

import pytest

from krscale.search.on_ray import waiting_trials
from krscale.search.on_ray.waiting_trials import WAIT_SECONDS, WaitingTrials


class Search:
    """A search on a cluster, and a clock."""

    def __init__(self) -> None:
        self.now, self.running, self.said = 0.0, False, list[str]()
        self.staged: dict[str, set[str]] = {"request": {"placement group"}}
        self.watch = WaitingTrials(
            {"CPU": 1.0}, 2, lambda: self.running, self.said.append, lambda: self.now
        )
        manager: Any = SimpleNamespace(_request_to_staged_pgs=self.staged)
        self.watch.controller = SimpleNamespace(
            _actor_manager=SimpleNamespace(_resource_manager=manager)
        )

    def look_after(self, seconds: float) -> int:
        """Let seconds pass, look once, and return the number of messages so far."""
        self.now += seconds
        self.watch.on_step_begin(0, [])
        return len(self.said)


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Search:
    nodes = [{"Alive": True, "Resources": {"CPU": 1.0}}]
    ray = SimpleNamespace(nodes=lambda: nodes, available_resources=lambda: {"CPU": 1.0})
    monkeypatch.setattr(waiting_trials, "ray", ray)
    monkeypatch.setattr("krscale.cluster.connect.ray", ray)
    return Search()


def test_it_is_said_once_with_what_there_is(search: Search) -> None:
    assert search.look_after(1.0) == 0
    assert search.look_after(WAIT_SECONDS) == 1
    assert search.look_after(WAIT_SECONDS) == 1
    assert search.said == [
        "no trial has had a worker for 60 s: a trial needs 2 times 1 CPU; the cluster has 1 node "
        "of 1 CPU, of which 1 CPU are free. The search goes on when there is room."
    ]
    search.running = True
    search.look_after(1.0)
    search.running = False
    assert search.look_after(WAIT_SECONDS) == 2, "it happened again"


def test_nothing_is_said_while_a_trial_runs_or_its_worker_starts(search: Search) -> None:
    search.running = True
    assert search.look_after(2 * WAIT_SECONDS) == 0
    search.running = False
    search.staged["request"].clear()  # Ray has made room; the process starts
    assert search.look_after(2 * WAIT_SECONDS) == 0
