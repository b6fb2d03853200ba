"""How a command stops on a signal: Ctrl-C, SIGTERM and SIGHUP end it in the same way.

Ctrl-C sends SIGINT; job schedulers, `docker stop` and `ray job stop` send SIGTERM; a terminal that
closes sends SIGHUP. Each raises `KeyboardInterrupt` in the main thread, so that code which cleans
up after Ctrl-C cleans up after all three. This module stores which signal it was, because Ray
catches the exception inside its own calls and raises a new one.
"""

from __future__ import annotations

import atexit
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAME_REQUEST_SECONDS = 1.0
"""A signal this soon after the first counts as the same request: a closing terminal sends SIGHUP
twice, and a scheduler may signal the process itself and also its group."""

Handler = Callable[[int, FrameType | None], object] | int | None


class _Stop:
    """Which signal this process has received; a single object, as signals are per process."""

    received: signal.Signals | None = None
    at = 0.0
    listening: tuple[signal.Signals, ...] = ()
    hangs: Callable[[], bool] | None = None


_stop = _Stop()


@contextmanager
def stop_signals() -> Iterator[None]:
    """Let the three signals raise `KeyboardInterrupt` while the block runs.

    A signal that was ignored when this process started stays ignored: `nohup` relies on it.
    Afterwards the handlers are as before, unless a signal was received: then a further one ends the
    process immediately, so that it cannot cause a traceback while Ray stops its processes and
    Python flushes. Outside the main thread, where Python allows no handlers, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[signal.Signals, Handler] = {each: signal.getsignal(each) for each in STOP_SIGNALS}
    _stop.received, _stop.hangs = None, None
    _stop.listening = tuple(each for each in STOP_SIGNALS if before[each] != signal.SIG_IGN)
    listen_again()
    try:
        yield
    finally:
        for each in _stop.listening:
            handler = before[each] if _stop.received is None else _exit_at_once
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
        _stop.listening = ()


def listen_again() -> None:
    """Install the handlers again after a library has installed its own, as `ray.init` does.

    Outside a `stop_signals` block, and outside the main thread, it does nothing.
    """
    if threading.current_thread() is threading.main_thread():
        for each in _stop.listening:
            signal.signal(each, _on_signal)


def received() -> signal.Signals | None:
    """Return the first signal that told this process to stop; None if there was none."""
    return _stop.received


def exit_code() -> int:
    """Return the exit code that shells expect after a signal: 130, 143 or 129."""
    return 128 + (_stop.received or signal.SIGINT)


def leave_early_if(hangs: Callable[[], bool]) -> None:
    """Let a stopped command skip the exit handlers of its libraries if these would hang.

    Args:
        hangs: Called when the process exits after a signal; returns whether the exit handlers of
            libraries would wait for something that is gone.
    """
    _stop.hangs = hangs


def watch_exit() -> None:
    """Let `leave_early_if` act when this process exits; call it last, when all work is recorded."""
    if _stop.received is not None and _stop.hangs is not None:
        atexit.register(_leave_early, _stop.hangs)  # the last registered handler runs first


def _leave_early(hangs: Callable[[], bool]) -> None:
    if not hangs():
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(exit_code())


@contextmanager
def own_exit_as_interrupt() -> Iterator[None]:
    """Turn the `SystemExit` of Ray's own SIGTERM handler into the `KeyboardInterrupt` of ours.

    `ray.init` installs its handler before its work and leaves it installed, so that a SIGTERM
    before `listen_again` does not reach our handler.
    """
    try:
        yield
    except SystemExit as error:
        if error.code != signal.SIGTERM or signal.SIGTERM not in _stop.listening:
            raise
        _stop.received = _stop.received or signal.SIGTERM
        raise KeyboardInterrupt from None


def _on_signal(number: int, frame: FrameType | None) -> None:
    del frame
    now = time.monotonic()
    if _stop.received is not None and now - _stop.at < SAME_REQUEST_SECONDS:
        return
    if _stop.received is None:
        _stop.received, _stop.at = signal.Signals(number), now
    if number == signal.SIGHUP:
        _leave_the_terminal()
    raise KeyboardInterrupt


def _leave_the_terminal() -> None:
    """Redirect output from a closed terminal to the null device: every print would be an error.

    For a terminal that has hung up, `isatty` is False, but it is still a character device.
    """
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, descriptor)
                os.close(null)


def _exit_at_once(number: int, frame: FrameType | None) -> None:
    del number, frame
    os._exit(exit_code())
