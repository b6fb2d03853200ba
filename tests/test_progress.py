import io
import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from krscale.progress import Progress, duration

ARTIFACTS = Path(__file__).with_name("artifacts")
METHODS, CAPACITIES = ("plain", "kd", "kr"), ("1/256", "1/64", "1/16", "1/4")
PLANNED = {(method, capacity): 11 for capacity in CAPACITIES for method in METHODS}


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def captured(width=80, terminal=False, encoding="utf-8"):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    return Console(file=file, width=width, force_terminal=terminal, color_system=None)


def text_of(console):
    return console.file.buffer.getvalue().decode(console.file.encoding)


def shown(progress, width, encoding="utf-8"):
    console = captured(width, encoding=encoding)
    console.print(progress.render())
    return text_of(console)


def busy_search(clock):
    """A search with trials of every state in every study."""
    progress = Progress(False, PLANNED, num_workers=16, console=captured(), clock=clock)
    progress.phase("search")
    for index, study in enumerate(PLANNED):
        for number, state in enumerate(["COMPLETE", "PRUNED", "PRUNED", "FAIL"]):
            progress.trial_started(study)
            progress.trial_report(study, 3, 0.5 + 0.01 * number)
            clock.now += 40
            progress.trial_ended(study, state, 0.8 + index / 100 if number == 0 else None)
        progress.trial_started(study)
    return progress


@pytest.mark.parametrize("width", [60, 140])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_view_fits_and_shows_every_study(width, encoding):
    clock = Clock()
    progress = busy_search(clock)
    clock.now += 60
    progress.advance(48, 132)
    text = shown(progress, width, encoding)
    lines = [line.rstrip().replace("|", " ") for line in text.splitlines()]
    assert max(map(len, lines)) <= width
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.lstrip()[:2] == "1/"}
    assert list(rows) == list(CAPACITIES)
    assert rows["1/256"] == [
        "4/11", "80.0", "1r2p1f", "4/11", "81.0", "1r2p1f", "4/11", "82.0", "1r2p1f",
    ]  # fmt: skip
    assert rows["1/4"][-2] == "91.0"
    assert "search" in lines[0]
    assert "48/132" in lines[0]
    assert "48/132 trials, 24 pruned, 12 failed, 12/16 workers busy" in lines
    # 6 trials of each of the 12 studies have yet to start, 40 s each, on 16 workers; the running
    # ones have run for longer.
    assert "elapsed 33:00, about 3:00 left" in lines
    # 160 s of each study, while 0, 1, ... 11 others ran; then 12 trials for a minute.
    assert "worker time 3:40:00 spent, about 48:00 more" in lines


@pytest.mark.parametrize("width", [60, 140])
def test_a_terminal_is_captured_as_it_looks(width, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    console = Console(file=io.StringIO(), width=width, height=40, force_terminal=True, record=True)
    progress = busy_search(Clock())
    console.print(progress.render())
    ARTIFACTS.mkdir(exist_ok=True)
    picture = console.export_svg(title=f"krscale tune, {width} columns", clear=False)
    (ARTIFACTS / f"terminal-{width}.svg").write_text(picture, encoding="utf-8")
    lines = console.export_text(styles=True).splitlines()
    bold = [line for line in lines if "\x1b[1m" in line and "4/11" in line]
    assert len(bold) == len(CAPACITIES), "the best of every size stands out"
    assert all(line.count("\x1b[1m") == 1 for line in bold)


def test_worker_time_is_that_of_all_workers_together():
    clock = Clock()
    progress = Progress(False, {("kr", "1/4"): 4}, console=captured(), clock=clock)
    clock.now += 100
    for _ in range(2):
        progress.trial_started(("kr", "1/4"))
    clock.now += 10
    progress.trial_ended(("kr", "1/4"), "COMPLETE", 0.8)
    clock.now += 5
    assert progress.worker_seconds() == pytest.approx(2 * 10 + 5)
    progress.trial_ended(("kr", "1/4"), "COMPLETE", 0.8)
    clock.now += 5
    assert progress.worker_seconds() == pytest.approx(25)
    # Both were the first trials of their workers, whose start-up time is not known.
    text = shown(progress, 60)
    assert "worker time 0:25 spent\n" in text
    assert "estimating the time left" in text
    progress.trial_started(("kr", "1/4"))
    clock.now += 7
    progress.trial_ended(("kr", "1/4"), "COMPLETE", 0.8)
    assert "worker time 0:32 spent, about 0:07 more" in shown(progress, 60)


def test_what_is_planned_may_turn_out_to_be_less():
    clock = Clock()
    progress = Progress(False, PLANNED, console=captured(), clock=clock)
    progress.plan({("kr", "1/4"): 3}, {"1/4": 1000.0})
    for _ in range(2):
        progress.trial_started(("kr", "1/4"))
        clock.now += 5
        progress.trial_ended(("kr", "1/4"), "COMPLETE", 0.8)
    assert progress.seconds_left() == pytest.approx(5.0)
    text = shown(progress, 60)
    assert "2/3 trials" in text
    assert "1/256" not in text


def test_before_the_first_trial_there_is_no_table():
    progress = Progress(False, PLANNED, console=captured())
    progress.phase("teacher")
    progress.advance(3, 30)
    assert shown(progress, 60).split() == ["teacher", "━━", "3/30"]


def test_the_time_left_needs_two_trials_and_ignores_restored_ones():
    clock = Clock()
    progress = Progress(False, {("kr", "1/4"): 10}, console=captured(), clock=clock)
    for _ in range(4):
        progress.trial_restored(("kr", "1/4"), "COMPLETE", 0.9)
    clock.now += 1000
    assert progress.seconds_left() is None
    for _ in range(2):
        progress.trial_started(("kr", "1/4"))
        clock.now += 5
        progress.trial_ended(("kr", "1/4"), "COMPLETE", 0.8)
    assert progress.seconds_left() == pytest.approx(4 * 10 / 2)
    for _ in range(4):
        progress.trial_started(("kr", "1/4"))
        progress.trial_ended(("kr", "1/4"), "COMPLETE", 0.8)
    assert progress.seconds_left() is None
    assert "10/10 90.0" in shown(progress, 60)


def test_nan_and_failed_values_are_never_the_best():
    progress = Progress(False, {("kr", "1/4"): 4}, console=captured())
    for state, value in (("FAIL", 0.99), ("COMPLETE", float("nan")), ("PRUNED", None)):
        progress.trial_started(("kr", "1/4"))
        progress.trial_ended(("kr", "1/4"), state, value)
    assert "3/4 - 1p1f" in shown(progress, 60)
    progress.trial_started(("kr", "1/4"))
    progress.trial_report(("kr", "1/4"), 1, 0.25)
    assert "3/4 25.0 1r1p1f" in shown(progress, 60)


def test_without_a_terminal_lines_are_few_but_phases_and_notes_are_all_there():
    clock, console = Clock(), captured(width=40)
    with Progress(False, {("kr", "1/4"): 1000}, console=console, clock=clock) as progress:
        progress.phase("teacher")
        for epoch in range(100):
            clock.now += 0.2
            progress.advance(epoch + 1, 100)
        progress.phase("search")
        for _ in range(100):
            progress.trial_started(("kr", "1/4"))
            clock.now += 0.1
            progress.trial_ended(("kr", "1/4"), "PRUNED", 0.5)
        progress.note("a trial failed: [bold]NaN[/bold] " + "x" * 100)
    lines = text_of(console).splitlines()
    assert [line for line in lines if "/1" not in line] == [
        "krscale: teacher",
        "krscale: search",
        "krscale: a trial failed: [bold]NaN[/bold] " + "x" * 100,
    ]
    teacher = [line for line in lines if line.startswith("krscale: teacher ")]
    assert 3 <= len(teacher) <= 4
    assert teacher[0] in ("krscale: teacher 25/100", "krscale: teacher 26/100")
    search = [line for line in lines if "elapsed" in line]
    assert 1 <= len(search) <= 2
    assert "running" in search[0]
    assert "best val 1/4 kr 50.0 %" in search[0]
    assert lines[-1] == "krscale: 100/1000 trials, 100 pruned, 0 failed in 0:30"
    assert "\x1b" not in text_of(console)


def test_quiet_shows_notes_only():
    for terminal in (False, True):
        console = captured(terminal=terminal)
        with Progress(True, {("kr", "1/4"): 2}, console=console) as progress:
            progress.phase("search")
            progress.advance(1, 2)
            progress.trial_started(("kr", "1/4"))
            progress.trial_ended(("kr", "1/4"), "COMPLETE", 0.5)
            progress.note("the disk is nearly full")
        assert text_of(console) == "krscale: the disk is nearly full\n"


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    console = captured(terminal=True)
    with Progress(False, {}, console=console) as progress:
        progress.phase("teacher")
    assert text_of(console) == "krscale: teacher\n"


def test_many_threads_may_report_at_once(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    console = captured(width=100, terminal=True)
    studies = list(PLANNED)
    with Progress(False, dict.fromkeys(studies, 50), console=console) as progress:

        def work(study):
            for number in range(50):
                progress.trial_started(study)
                progress.trial_report(study, number, 0.5)
                progress.trial_ended(study, "COMPLETE", 0.6)
                if number % 25 == 0:
                    progress.note(f"{study} {number}")

        threads = [threading.Thread(target=work, args=(study,)) for study in studies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        text = shown(progress, 100)
    assert text.count("50/50 60.0") == len(studies)
    assert f"{50 * len(studies)}/{50 * len(studies)} trials" in text


def test_an_error_inside_ends_the_live_view_and_passes(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    console = captured(terminal=True)

    def fail():
        with Progress(False, {}, console=console) as progress:
            progress.phase("search")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert text_of(console).rfind(show) > text_of(console).rfind(hide) >= 0


def test_in_a_real_terminal_stdout_holds_only_what_is_printed_to_it():
    code = (
        "import sys, time\nfrom krscale.progress import Progress\n"
        "with Progress(False, {('kr', '1/4'): 2}) as progress:\n"
        "    progress.phase('search')\n"
        "    for _ in range(2):\n"
        "        progress.trial_started(('kr', '1/4'))\n"
        "        time.sleep(0.4)\n"
        "        progress.trial_ended(('kr', '1/4'), 'COMPLETE', 0.5)\n"
        "        print('{\"json\": 1}', flush=True)\n"
        "        print('a library complains', file=sys.stderr)\n"
    )
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=child,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "60"},
    )  # fmt: skip
    os.close(child)
    pieces = []
    reader = threading.Thread(target=lambda: pieces.extend(iter(lambda: read(parent), b"")))
    reader.start()
    out, _ = process.communicate(timeout=30)
    reader.join(10)
    os.close(parent)
    screen = b"".join(pieces).decode()
    assert process.returncode == 0
    assert out == b'{"json": 1}\n' * 2
    assert "1/2" in screen
    assert screen.count("a library complains") == 2
    assert "json" not in screen
    assert re.search(r"krscale: 2/2 trials, 0 pruned, 0 failed in \d+:\d\d", screen)


def read(terminal):
    try:
        return os.read(terminal, 65536)
    except OSError:  # EIO on Linux when the other side is closed
        return b""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (754, "12:34"),
                          (3723, "1:02:03")],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text
