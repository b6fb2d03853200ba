"""What Ctrl-C, SIGTERM and SIGHUP do to a command, in processes of their own."""

import os
import pty
import signal
import subprocess
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from running import python

from krscale import interruption
from krscale.interruption import own_exit_as_interrupt, received, stop_signals

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
NAMES = {signal.SIGINT: "", signal.SIGTERM: " by SIGTERM", signal.SIGHUP: " by SIGHUP"}
WAITING = "def work(argv):\n    print('ready', flush=True)\n    sleep(60)\n"
CLEANING = (
    "def work(argv):\n"
    "    try:\n        print('ready', flush=True)\n        sleep(60)\n"
    "    finally:\n        print('cleaning', flush=True)\n        sleep({seconds})\n"
    "        print('clean', flush=True)\n"
)
AFTERWARDS = (
    "def ray_shuts_down():\n    print('leaving', flush=True)\n    sleep(60)\n"
    "atexit.register(ray_shuts_down)\n"
)


def start(
    work: str, before: str = "", **streams: int
) -> AbstractContextManager["subprocess.Popen[str]"]:
    """Start a command whose work is given."""
    code = (
        "import atexit, signal, sys; from naps import sleep\n"
        "from krscale.cli.common import run_command\n"
        f"{before}{work}sys.exit(run_command(work, []))"
    )
    return python(code, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams})


def wait_for(process: "subprocess.Popen[str]", line: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == f"{line}\n"


@pytest.mark.parametrize("stop", CODES)
def test_each_signal_ends_a_command_in_its_own_code(stop: signal.Signals) -> None:
    with start(WAITING) as process:
        wait_for(process, "ready")
        process.send_signal(stop)
        _, err = process.communicate(timeout=30)
    assert process.returncode == CODES[stop]
    assert err == f"krscale: interrupted{NAMES[stop]}; the same command again continues.\n"


@pytest.mark.parametrize("stop", CODES)
def test_what_was_begun_is_cleaned_up_though_the_same_signal_comes_twice(
    stop: signal.Signals,
) -> None:
    with start(CLEANING.format(seconds=0.5)) as process:
        wait_for(process, "ready")
        process.send_signal(stop)
        wait_for(process, "cleaning")
        # Like a closing terminal, or a scheduler that signals the process group.
        process.send_signal(stop)
        out, err = process.communicate(timeout=30)
    assert out == "clean\n"
    assert process.returncode == CODES[stop]
    assert "Traceback" not in err


@pytest.mark.parametrize("second", CODES)
def test_a_second_request_ends_the_cleaning(second: signal.Signals) -> None:
    with start(CLEANING.format(seconds=60)) as process:
        wait_for(process, "ready")
        process.send_signal(signal.SIGTERM)
        wait_for(process, "cleaning")
        time.sleep(1.2 * interruption.SAME_REQUEST_SECONDS)
        process.send_signal(second)
        out, err = process.communicate(timeout=30)
    assert (out, process.returncode) == ("", 143), "the first signal is the reason"
    assert err == "krscale: interrupted by SIGTERM; the same command again continues.\n"


@pytest.mark.parametrize("second", CODES)
def test_a_signal_while_the_process_leaves_ends_it_at_once_without_a_traceback(
    second: signal.Signals,
) -> None:
    with start(WAITING, AFTERWARDS) as process:
        wait_for(process, "ready")
        process.send_signal(signal.SIGTERM)
        wait_for(process, "leaving")
        process.send_signal(second)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 143
    assert err == "krscale: interrupted by SIGTERM; the same command again continues.\n"


@pytest.mark.parametrize(
    "error",
    [
        "UserError('every trial failed')",
        "OSError('gone')",
        "RuntimeError('Traceback (most recent call last):\\n  File ...\\nOSError: gone')",
    ],
)
def test_what_fails_because_of_the_signal_is_no_traceback(error: str) -> None:
    work = (
        "from krscale.errors import UserError\n"
        "def work(argv):\n"
        "    try:\n        print('ready', flush=True)\n        sleep(60)\n"
        f"    except KeyboardInterrupt:\n        raise {error} from None\n"
    )
    with start(work) as process:
        wait_for(process, "ready")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 143
    first, last = err.splitlines()
    assert first.startswith(f"krscale: while stopping: {error.partition('(')[0]}: ")
    assert "Traceback" not in first
    assert last == "krscale: interrupted by SIGTERM; the same command again continues."


@pytest.mark.parametrize("ended", ["UserError('it failed')", "OSError(28, 'No space left', '/a')"])
def test_a_signal_while_an_error_is_recorded_does_not_hide_it(ended: str) -> None:
    work = (
        "from krscale.errors import UserError\n"
        f"def work(argv):\n    try:\n        raise {ended}\n"
        "    finally:\n        print('recording', flush=True)\n        sleep(60)\n"
    )
    with start(work) as process:
        wait_for(process, "recording")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 143
    first, last = err.splitlines()
    assert first.startswith(("krscale: error: it failed", "krscale: error: /a: the disk is full"))
    assert last == "krscale: interrupted by SIGTERM; the same command again continues."


def test_a_signal_that_is_ignored_from_the_start_stays_ignored() -> None:
    # As under `nohup`: the terminal closes and the search continues.
    work = "def work(argv):\n    print('ready', flush=True)\n    return int(input())\n"
    with start(
        work, "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n", stdin=subprocess.PIPE
    ) as process:
        wait_for(process, "ready")
        process.send_signal(signal.SIGHUP)
        _, err = process.communicate("7\n", timeout=30)
    assert (process.returncode, err) == (7, "")


def test_a_closed_terminal_does_not_break_the_cleaning(tmp_path: Path) -> None:
    ready, clean = tmp_path / "ready", tmp_path / "clean"
    work = (
        "from pathlib import Path\n"
        "def work(argv):\n"
        f"    try:\n        Path({str(ready)!r}).touch()\n        sleep(60)\n"
        "    finally:\n        print('x' * 100_000, flush=True)\n"
        "        print('x' * 100_000, file=sys.stderr, flush=True)\n"
        f"        Path({str(clean)!r}).touch()\n"
    )
    master, slave = pty.openpty()
    terminal = os.ttyname(slave)
    code = (
        "import os, sys; from naps import sleep; from krscale.cli.common import run_command\n"
        # The first terminal that a session leader opens becomes its controlling terminal.
        f"for each in (0, 1, 2): os.dup2(os.open({terminal!r}, os.O_RDWR), each)\n"
        f"{work}sys.exit(run_command(work, []))"
    )
    # Streams that begin as pipes have no position that would be lost when `dup2` replaces them.
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with python(code, start_new_session=True, **pipes) as process:
        deadline = time.monotonic() + 30
        while not ready.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.close(slave)
        os.close(master)  # closes the window: the kernel sends SIGHUP to its processes
        assert process.wait(timeout=30) == 129
    assert clean.exists()


@pytest.mark.parametrize(("hangs", "left"), [(True, False), (False, True)])
def test_a_stopped_command_leaves_before_an_exit_that_would_hang(hangs: bool, left: bool) -> None:
    exits = "atexit.register(print, 'libraries exit')\n"
    check = f"from krscale.interruption import leave_early_if\nhangs = lambda: {hangs}\n"
    work = WAITING.replace("    print", "    leave_early_if(hangs)\n    print")
    with start(work, exits + check) as process:
        wait_for(process, "ready")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "interrupted by SIGTERM" in err, "nothing printed before is lost"
    assert ("libraries exit" in out) == left


def test_a_command_that_was_not_stopped_exits_as_ever() -> None:
    exits = "atexit.register(print, 'libraries exit')\n"
    work = (
        "from krscale.interruption import leave_early_if\n"
        "def work(argv):\n    leave_early_if(lambda: True)\n    return 0\n"
    )
    with start(work, exits) as process:
        out, _ = process.communicate(timeout=30)
    assert out == "libraries exit\n"


def test_rays_own_handler_of_sigterm_means_the_same() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(KeyboardInterrupt), stop_signals(), own_exit_as_interrupt():
            raise SystemExit(signal.SIGTERM)
        assert received() is signal.SIGTERM
        with pytest.raises(SystemExit), stop_signals(), own_exit_as_interrupt():
            raise SystemExit(2)
        assert received() is None
        with pytest.raises(SystemExit), own_exit_as_interrupt():  # in a user's own program
            raise SystemExit(signal.SIGTERM)
    finally:
        for each in CODES:
            signal.signal(each, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, before)


def test_handlers_are_as_before_once_the_work_is_done() -> None:
    before = {each: signal.getsignal(each) for each in CODES}
    with stop_signals():
        assert all(signal.getsignal(each) != before[each] for each in CODES)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # like ray.init, which sets its own handler
        interruption.listen_again()
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    assert {each: signal.getsignal(each) for each in CODES} == before
    interruption.listen_again()
    assert {each: signal.getsignal(each) for each in CODES} == before


def test_another_thread_changes_no_handler() -> None:
    seen = []

    def work() -> None:
        with stop_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
