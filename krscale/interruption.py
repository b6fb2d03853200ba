"""How a command stops when it is told to: Ctrl-C, SIGTERM and SIGHUP end it in one way.

SIGINT is what Ctrl-C sends, SIGTERM what job schedulers, `docker stop` and `ray job stop` send, and
SIGHUP what is sent when a terminal closes. Each raises `KeyboardInterrupt` in the main thread, so
that code which cleans up after Ctrl-C cleans up after all three. Which signal it was is kept here:
Ray catches the exception inside its own calls and raises a new one.
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
"""A signal this soon after the first is the same request: a closing terminal sends SIGHUP twice,
and a scheduler may reach the process itself and again through its group."""

Handler = Callable[[int, FrameType | None], object] | int | None


class _Stop:
    """Which signal this process has received; one for the process, as signals are."""

    received: signal.Signals | None = None
    at = 0.0
    listening: tuple[signal.Signals, ...] = ()
    hangs: Callable[[], bool] | None = None


_stop = _Stop()


@contextmanager
def stop_signals() -> Iterator[None]:
    """Let the three signals raise `KeyboardInterrupt` while the block runs.

    A signal that this process was started to ignore stays ignored: `nohup` relies on it. Afterwards
    the handlers are as before; but once a signal was received, a further one ends the process at
    once, because what follows (Ray stops its processes, Python flushes) must not be a traceback.
    Outside the main thread, where Python allows no handlers, nothing is changed.
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

    Without `stop_signals` around it, and outside the main thread, it does nothing.
    """
    if threading.current_thread() is threading.main_thread():
        for each in _stop.listening:
            signal.signal(each, _on_signal)


def received() -> signal.Signals | None:
    """Return the first signal that told this process to stop, None while there was none."""
    return _stop.received


def exit_code() -> int:
    """Return what shells expect of a process that a signal ended: 130, 143 or 129."""
    return 128 + (_stop.received or signal.SIGINT)


def leave_early_if(hangs: Callable[[], bool]) -> None:
    """Let a stopped command skip the exit of its libraries where that would hang.

    Args:
        hangs: Called when the process exits after a signal; whether the libraries' own exit would
            wait for something that is gone.
    """
    _stop.hangs = hangs


def watch_exit() -> None:
    """Watch over the exit of this process; call it last, when all work is recorded."""
    if _stop.received is not None and _stop.hangs is not None:
        atexit.register(_leave_early, _stop.hangs)  # what is registered last runs first


def _leave_early(hangs: Callable[[], bool]) -> None:
    if not hangs():
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(exit_code())


@contextmanager
def own_exit_as_interrupt() -> Iterator[None]:
    """Turn the `SystemExit` that Ray's own SIGTERM handler raises into what ours would.

    `ray.init` installs that handler before its work and leaves it, so that a SIGTERM in between
    does not come here.
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
    """Write nothing more to a terminal that has gone: every print would be an error.

    One that has hung up no longer answers `isatty`, but is still a character device.
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
