"""What workers report to the driver, with simulated workers."""

from queue import Queue
from types import SimpleNamespace
from typing import Any

import pytest

from krscale.cluster import worker_reports
from krscale.cluster.worker_reports import ReportReader, StepReport, StepReporter, WorkersLost
from krscale.stalls import LONGEST_LOOK, START_SECONDS, StallWatch


class Watched:
    """A reader with `stall_seconds = 10`, whose checks are 5 seconds apart, and what it did."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.killed: list[Any] = []
        self.notes: list[str] = []
        self.epochs: list[dict[str, float]] = []
        self.now = 0.0
        monkeypatch.setattr(worker_reports.ray, "kill", self.killed.append)
        watch = StallWatch(10.0, lambda: self.now)
        queue: Any = None
        self.reader = ReportReader(queue, self.epochs.append, self.notes.append, watch)

    def check(self, times: int) -> None:
        for _ in range(times):
            self.now += LONGEST_LOOK
            self.reader.check()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def test_workers_that_make_no_step_are_ended_once(watched: Watched) -> None:
    for rank in (0, 1):
        watched.reader.take(StepReport(rank, f"worker {rank}", started=True))
    watched.check(2)
    assert watched.killed == []
    watched.check(20)
    assert watched.killed == ["worker 0", "worker 1"], "then there are none"
    (note,) = watched.notes
    assert note.startswith("The training: it made no progress for 10 s and was ended (search.")
    assert watched.reader.why_ended.startswith("it made no progress")
    assert watched.reader.watch.longest == 0.0, "a pause that was ended tells nothing of the pace"
    watched.reader.take(StepReport(0, "worker 2", started=True))
    assert watched.reader.why_ended == ""


def test_a_step_of_any_worker_or_an_epoch_is_progress(watched: Watched) -> None:
    watched.reader.take(StepReport(0, "worker 0", started=True))
    for _ in range(5):
        watched.check(1)
        watched.reader.take(StepReport(1, "worker 1", started=True))
        watched.check(1)
        watched.reader.take({"epoch": 1.0})
    assert watched.killed == []
    assert watched.epochs == [{"epoch": 1.0}] * 5


def test_while_workers_start_no_time_counts(watched: Watched) -> None:
    watched.check(1000)
    watched.reader.take(StepReport(0, "worker 0", started=True))
    watched.reader.take(WorkersLost())
    watched.check(1000)
    assert watched.killed == []
    assert watched.reader.watch.longest == 0.0


def test_the_reader_runs_until_none_comes() -> None:
    """It runs as a thread: the class must not override an attribute of `threading.Thread`."""
    epochs: list[dict[str, float]] = []
    queue: Any = Queue()
    reader = ReportReader(queue, epochs.append, print, StallWatch(10.0))
    reader.start()
    for message in (StepReport(0, "worker 0", started=True), {"epoch": 1.0}, None):
        queue.put(message)
    reader.join(timeout=60)
    assert not reader.is_alive()
    assert epochs == [{"epoch": 1.0}]


def test_what_goes_wrong_with_an_epoch_is_kept_and_the_reader_reads_on(watched: Watched) -> None:
    """If it ended the thread, a command that succeeds would print a traceback."""
    full = OSError(28, "No space left on device")

    def refuse(metrics: dict[str, float]) -> None:
        watched.epochs.append(metrics)
        raise full

    watched.reader.on_epoch = refuse
    watched.reader.take(StepReport(0, "worker 0", started=True))
    for epoch in (1.0, 2.0):
        watched.reader.take({"epoch": epoch})
    assert watched.reader.error is full
    assert ["No space left" in note for note in watched.notes] == [True], "said once, and at once"
    assert watched.epochs == [{"epoch": 1.0}], "not once more: an epoch would be missing between"
    watched.check(20)
    assert watched.killed == ["worker 0"], "who hangs is still ended"


def test_what_ends_the_reader_is_kept() -> None:
    """Otherwise no further epoch is recorded, no stall is noticed, and the command succeeds."""
    lost = RuntimeError("the queue is gone")

    class Lost:
        def get(self, timeout: float) -> None:
            raise lost

    queue: Any = Lost()
    reader = ReportReader(queue, print, print, StallWatch(10.0))
    reader.start()
    reader.join(timeout=60)
    assert not reader.is_alive()
    assert reader.error is lost


def test_before_its_first_step_a_worker_may_take_long(watched: Watched) -> None:
    """It builds the network and opens the data, and `stall_seconds` may be shorter than that."""
    watched.reader.take(StepReport(0, "worker 0", started=False))
    watched.check(int(START_SECONDS / LONGEST_LOOK))
    assert watched.killed == []
    watched.check(1)
    assert watched.killed == ["worker 0"]


def test_a_worker_reports_that_it_begins_and_some_of_its_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = SimpleNamespace(current_actor="its actor")
    monkeypatch.setattr(worker_reports.ray, "get_runtime_context", lambda: context)
    sent: list[StepReport] = []
    now = 0.0
    reporter = StepReporter(sent.append, 1, 8.0, clock=lambda: now)
    assert sent == [StepReport(1, "its actor", started=False)]
    for now in (0.5, 1.9, 2.5, 3.9, 4.6):  # noqa: B007 (the clock)
        reporter.step()
    assert sent[1:] == [StepReport(1, "its actor", started=True)] * 3
