"""What the driver hears of a training over workers, with workers of the test's own."""

from types import SimpleNamespace
from typing import Any

import pytest

from krscale.cluster import hearing
from krscale.cluster.hearing import Listener, Lost, Step, Steps
from krscale.stalls import LONGEST_LOOK, StallWatch


class Heard:
    """A listener with `stall_seconds = 10`, whose looks are 5 seconds apart, and what it did."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.killed: list[Any] = []
        self.notes: list[str] = []
        self.epochs: list[dict[str, float]] = []
        self.now = 0.0
        monkeypatch.setattr(hearing.ray, "kill", self.killed.append)
        watch = StallWatch(10.0, lambda: self.now)
        queue: Any = None
        self.listener = Listener(queue, self.epochs.append, self.notes.append, watch)

    def look(self, times: int) -> None:
        for _ in range(times):
            self.now += LONGEST_LOOK
            self.listener.look()


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    return Heard(monkeypatch)


def test_workers_that_make_no_step_are_ended_once(heard: Heard) -> None:
    for rank in (0, 1):
        heard.listener.hear(Step(rank, f"worker {rank}"))
    heard.look(2)
    assert heard.killed == []
    heard.look(20)
    assert heard.killed == ["worker 0", "worker 1"], "then there are none"
    (note,) = heard.notes
    assert note.startswith("The training: it made no progress for 10 s and was ended (search.")
    assert heard.listener.why_ended.startswith("it made no progress")
    assert heard.listener.watch.longest == 0.0, "a pause that was ended tells nothing of the pace"
    heard.listener.hear(Step(0, "worker 2"))
    assert heard.listener.why_ended == ""


def test_a_step_of_any_worker_or_an_epoch_is_progress(heard: Heard) -> None:
    heard.listener.hear(Step(0, "worker 0"))
    for _ in range(5):
        heard.look(1)
        heard.listener.hear(Step(1, "worker 1"))
        heard.look(1)
        heard.listener.hear({"epoch": 1.0})
    assert heard.killed == []
    assert heard.epochs == [{"epoch": 1.0}] * 5


def test_while_workers_start_no_time_counts(heard: Heard) -> None:
    heard.look(1000)
    heard.listener.hear(Step(0, "worker 0"))
    heard.listener.hear(Lost())
    heard.look(1000)
    assert heard.killed == []
    assert heard.listener.watch.longest == 0.0


def test_a_worker_tells_of_its_steps_not_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(current_actor="its actor")
    monkeypatch.setattr(hearing.ray, "get_runtime_context", lambda: context)
    sent: list[Step] = []
    now = 0.0
    steps = Steps(sent.append, 1, 8.0, clock=lambda: now)
    assert sent == [Step(1, "its actor")]
    for now in (0.5, 1.9, 2.0, 3.9, 4.1):  # noqa: B007 (the clock)
        steps.give()
    assert len(sent) == 3
