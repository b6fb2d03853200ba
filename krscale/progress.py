"""The live view of a search, on stderr, so that stdout holds results only.

In a terminal: a table of sizes and methods that is redrawn in place. Otherwise (a file, a job's
log): plain lines, at most one every few seconds. Quiet: notes only.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from krscale.redaction import redact
from krscale.showing import printable, terminal
from krscale.time_left import Study, TimeLeft, Workload

_SECONDS_BETWEEN_LINES = 5.0
_REFRESHES_PER_SECOND = 4.0


@dataclass
class _Cell:
    """The trials of one study."""

    planned: int
    done: int = 0
    running: int = 0
    pruned: int = 0
    failed: int = 0
    best: float | None = None

    def see(self, value: float | None) -> None:
        """Update the best validation accuracy; NaN is ignored."""
        if value is not None and value == value and (self.best is None or value > self.best):
            self.best = value

    def end(self, state: str, value: float | None) -> None:
        self.done += 1
        self.pruned += state == "PRUNED"
        self.failed += state == "FAIL"
        if state != "FAIL":
            self.see(value)


class Progress:
    """Shows the progress of a running search; a context manager.

    Args:
        quiet: Show notes only.
        planned: Study -> number of its trials; if empty, only phases are shown.
        workload: The trainings of every study, from which the remaining time is estimated.
        num_workers: Number of trials that can run at once; 0 if unknown.
        console: Console to draw on; None uses stderr.
        clock: Returns seconds; replaced in tests.

    Every method may be called from any thread and returns at once.
    """

    def __init__(
        self,
        quiet: bool,
        planned: Mapping[Study, int],
        *,
        workload: Workload | None = None,
        num_workers: int = 0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or terminal(stderr=True)
        self._quiet, self._clock, self.num_workers = quiet, clock, num_workers
        self._workload = workload or Workload()
        self.plan(planned)
        self._phase, self._step = "", (0, 0)
        self._started = clock()
        self._running, self._worker_seconds, self._counted_until = 0, 0.0, self._started
        self._last_line = -_SECONDS_BETWEEN_LINES
        self._lock = threading.RLock()
        is_terminal = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live: Live | None = None
        if is_terminal and not quiet:
            self._live = Live(
                console=self._console,
                get_renderable=self.render,
                refresh_per_second=_REFRESHES_PER_SECOND,
                transient=True,
                # Stdout may be redirected only if it is a terminal too; a pipe or file must get
                # every byte that is printed to it.
                redirect_stdout=sys.stdout.isatty(),
            )

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()
        if not self._quiet and self._ended_here:
            self._print(f"{self._counts()} in {duration(self._clock() - self._started)}")

    def plan(self, planned: Mapping[Study, int], costs: Mapping[str, float] | None = None) -> None:
        """Set the studies and reset all counts; to be called before the first trial.

        Args:
            planned: Study -> number of its trials.
            costs: Capacity -> FLOPs of its student.
        """
        self._cells = {study: _Cell(count) for study, count in planned.items()}
        self.time_left = TimeLeft(planned, self._workload, costs)
        self._ended_here = 0

    def phase(self, title: str) -> None:
        """Begin a new part of the work: `"teacher"`, `"store"`, `"search"`.

        The name of the current part has no effect.
        """
        with self._lock:
            if title == self._phase:
                return
            self._phase, self._step = title, (0, 0)
        if self._lines:
            self._print(title)
            self._last_line = self._clock()

    def advance(self, done: int, total: int) -> None:
        """Report that `done` of `total` steps of the current phase are done."""
        with self._lock:
            self._step = (done, total)
        self._maybe_line(lambda: f"{self._phase} {done}/{total}")

    def trial_restored(
        self,
        study: Study,
        state: str,
        value: float | None,
        *,
        final: bool = False,
        epochs: float | None = None,
    ) -> None:
        """Count a trial of an earlier start as done, with its number of epochs if known."""
        with self._lock:
            self._cells[study].end(state, value)
            self.time_left.restored(study, final=final, epochs=epochs)

    def trial_started(self, study: Study, name: str = "", *, final: bool = False) -> None:
        """Count a trial as running; `final` if it trains a winner again."""
        with self._lock:
            self._count_work(1)
            self._cells[study].running += 1
            self.time_left.started(study, name, self._clock(), final=final)
        self._maybe_line(self._summary)

    def trial_report(self, study: Study, epoch: int, value: float, name: str = "") -> None:
        """Record the validation accuracy (in [0, 1]) of a running trial after an epoch."""
        with self._lock:
            self._cells[study].see(value)
            self.time_left.reported(study, name, epoch, self._clock())
        self._maybe_line(self._summary)

    def trial_ended(self, study: Study, state: str, value: float | None, name: str = "") -> None:
        """Record the end of a trial: `COMPLETE`, `PRUNED` or `FAIL`, and any accuracy."""
        with self._lock:
            cell = self._cells[study]
            self._count_work(-1)
            cell.running = max(0, cell.running - 1)
            cell.end(state, value)
            self._ended_here += 1
            self.time_left.ended(study, name, self._clock(), counts=True)
        self._maybe_line(self._summary)

    def trial_interrupted(self, study: Study, name: str = "") -> None:
        """Record that a trial was interrupted and does not count; it will be run again."""
        with self._lock:
            cell = self._cells[study]
            self._count_work(-1)
            cell.running = max(0, cell.running - 1)
            self.time_left.ended(study, name, self._clock(), counts=False)

    def note(self, text: str) -> None:
        """Show a permanent line above the live view, even if quiet. Credentials are hidden."""
        self._print(redact(text))

    def seconds_left(self) -> float | None:
        """Estimate the remaining time; None before enough is done, and if nothing remains."""
        with self._lock:
            return self.time_left.seconds(self._clock(), self.num_workers)

    def worker_seconds(self) -> float:
        """Return the time workers spent on trials: ten workers for a minute give ten minutes."""
        return self._worker_seconds + self._running * (self._clock() - self._counted_until)

    def render(self) -> RenderableType:
        """Return the current live view."""
        with self._lock:
            parts: list[RenderableType] = [self._header()]
            if any(cell.done or cell.running for cell in self._cells.values()):
                parts += [self._table(), Text(self._footer(), style="dim")]
            return Group(*parts)

    @property
    def _lines(self) -> bool:
        return not self._quiet and self._live is None

    def _count_work(self, change: int) -> None:
        """Add the worker time since the number of running trials last changed, and change it."""
        self._worker_seconds, self._counted_until = self.worker_seconds(), self._clock()
        self._running = max(0, self._running + change)

    def _maybe_line(self, text: Callable[[], str]) -> None:
        if not self._lines or self._clock() - self._last_line < _SECONDS_BETWEEN_LINES:
            return
        self._last_line = self._clock()
        with self._lock:
            line = text()
        self._print(line)

    def _print(self, text: str) -> None:
        self._console.print(
            Text(printable(f"krscale: {text}")), soft_wrap=self._live is None, highlight=False
        )

    def _header(self) -> RenderableType:
        done, total = self._step
        title = Text(self._phase or "starting", style="bold")
        if not total:
            return title
        row = Table.grid(padding=(0, 1))
        row.add_row(title, ProgressBar(total=total, completed=done, width=20), f"{done}/{total}")
        return row

    def _table(self) -> Table:
        methods = list(dict.fromkeys(method for method, _ in self._cells))
        capacities = list(dict.fromkeys(capacity for _, capacity in self._cells))
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("size", justify="right", overflow="fold")
        for method in methods:
            table.add_column(method, overflow="fold")
        for capacity in capacities:
            cells = [self._cells.get((method, capacity)) for method in methods]
            best = max((c.best for c in cells if c and c.best is not None), default=None)
            texts = (_cell_text(cell, best) if cell else Text("") for cell in cells)
            table.add_row(capacity, *texts)
        return table

    def _footer(self) -> str:
        busy = sum(cell.running for cell in self._cells.values())
        of_all = f"/{self.num_workers}" if self.num_workers else ""
        return (
            f"{self._counts()}, {busy}{of_all} workers busy\n"
            f"elapsed {duration(self._clock() - self._started)}{self._left()}\n"
            f"{self._cost()}\n"
            "done/planned, best val % (bold: of its size), r running, p pruned, f failed"
        )

    def _left(self) -> str:
        left = self.seconds_left()
        if left is not None:
            return f", about {duration(left)} left"
        all_done = all(cell.done >= cell.planned for cell in self._cells.values())
        return "" if all_done else ", estimating the time left"

    def _cost(self) -> str:
        """Return the time of the workers, spent and remaining, as text."""
        more = self.time_left.worker_seconds(self._clock())
        text = f", about {duration(more)} more" if more is not None else ""
        return f"worker time {duration(self.worker_seconds())} spent{text}"

    def _counts(self) -> str:
        cells = self._cells.values()
        done, planned = sum(c.done for c in cells), sum(c.planned for c in cells)
        pruned, failed = sum(c.pruned for c in cells), sum(c.failed for c in cells)
        return f"{done}/{planned} trials, {pruned} pruned, {failed} failed"

    def _summary(self) -> str:
        busy = sum(cell.running for cell in self._cells.values())
        elapsed = duration(self._clock() - self._started)
        return f"{self._counts()}, {busy} running, elapsed {elapsed}{self._left()}{self._best()}"

    def _best(self) -> str:
        """Return the best validation accuracy of every size so far, and its method, as text."""
        best: dict[str, tuple[float, str]] = {}
        for (method, capacity), cell in self._cells.items():
            if cell.best is not None:
                best[capacity] = max(best.get(capacity, (0.0, "")), (cell.best, method))
        if not best:
            return ""
        found = (f"{size} {name} {100 * value:.1f} %" for size, (value, name) in best.items())
        return "; best val " + ", ".join(found)


def duration(seconds: float) -> str:
    """Return `0:07`, `12:34` or `1:02:03`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _cell_text(cell: _Cell, best_of_size: float | None) -> Text:
    text = Text(f"{cell.done}/{cell.planned}", style="green" if cell.done >= cell.planned else "")
    style = "bold" if cell.best == best_of_size else "dim"
    text.append(f" {100 * cell.best:.1f}" if cell.best is not None else " -", style=style)
    text.append(" ")
    for count, letter, style in (
        (cell.running, "r", "cyan"), (cell.pruned, "p", "dim"), (cell.failed, "f", "red"),
    ):  # fmt: skip
        if count:
            text.append(f"{count}{letter}", style=style)
    return text
