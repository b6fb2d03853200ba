"""What all commands share: their common arguments, and how they end."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from krscale.allocator import keep_freed_memory
from krscale.errors import UserError
from krscale.extras import missing_extra
from krscale.interruption import exit_code, received, stop_signals, watch_exit
from krscale.redaction import redact
from krscale.showing import show
from krscale.storage_errors import storage_error

EXIT_USER_ERROR = 2
EXIT_CLOSED_PIPE = 141
_LONGEST_WAIT = 10_000_000
_PASSING_BYTES = ("surrogateescape", "surrogatepass")
"""Ways of a stream to treat characters by which it passes bytes of file names on."""


def run_command(function: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Run a command and return its exit code.

    Args:
        function: Parses `argv`, does the work and returns the exit code.
        argv: Arguments without the program's name.

    Returns:
        What the function returned; 2 after a `UserError`, a missing package of an extra or a
        failure to write to storage, with the error printed on stderr; 130 after Ctrl-C, 143 after
        SIGTERM, 129 after SIGHUP; 141 when the reader of stdout closed it. Any other exception is
        a defect of krscale and is passed on with its traceback.
    """
    # Threads that wait for each other sleep instead of spinning: next to another busy process, two
    # spinning threads are several times slower than one, and on free cores sleeping costs little
    # (docs/log.md). OpenMP reads this when torch is loaded, which commands do later.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    _mend_streams()
    keep_freed_memory()
    with stop_signals():
        try:
            code = function(argv)
            sys.stdout.flush()
        except KeyboardInterrupt as stop:
            with suppress(OSError):  # the terminal may be closed
                _show(_hidden_by(stop))
            return _interrupted()
        except Exception as error:
            if received() is not None:
                return _interrupted(error)
            refused = error if isinstance(error, UserError) else missing_extra(error)
            refused = refused or storage_error(error, denied=True) or _without_folder(error)
            if refused:
                _show(refused)
                return EXIT_USER_ERROR
            if isinstance(error, BrokenPipeError):
                # Python flushes stdout once more at exit, which would fail again.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return EXIT_CLOSED_PIPE
            raise
    return code


def _without_folder(error: Exception) -> UserError | None:
    """Return the error to show if the current folder was deleted, else None."""
    if isinstance(error, FileNotFoundError):
        try:
            Path.cwd()
        except FileNotFoundError:
            return UserError("the current folder does not exist any more; change to another one.")
    return None


def _mend_streams() -> None:
    """Open closed streams on the null device, and escape characters that a stream cannot encode.

    In the locale C, a stream passes bytes of file names on (`surrogateescape`), and refuses any
    other character that is not ASCII.
    Python sets a stream to None if it was closed before it started (`>&-`, some services). The
    next file that is opened then gets its number, and a library's output would end up in that file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and mode == "w" and _refuses(stream):
            stream.reconfigure(errors="backslashreplace")


def _refuses(stream: io.TextIOWrapper) -> bool:
    """Return whether a stream raises an error for some text; UTF-8 has every character."""
    is_utf8 = stream.encoding.lower().replace("-", "") == "utf8"
    return stream.errors == "strict" or (stream.errors in _PASSING_BYTES and not is_utf8)


def _show(error: UserError | None) -> None:
    """Print an error on stderr, with each of its lines as an error of its own."""
    for line in redact(str(error)).splitlines() if error else ():
        show(f"krscale: error: {line}", file=sys.stderr)


def _hidden_by(stop: KeyboardInterrupt) -> UserError | None:
    """Return the error that had ended the command before a signal interrupted its clean-up."""
    following: BaseException | None = stop
    while following is not None:
        if isinstance(following, UserError):
            return following
        following = following.__cause__ or following.__context__
    return storage_error(stop)


def _in_a_line(error: Exception) -> str:
    """Return the first line of an error, or the last of a traceback, which Tune's errors hold."""
    lines = str(error).strip().splitlines() or [""]
    return lines[-1] if lines[0].startswith("Traceback") else lines[0]


def _interrupted(error: Exception | None = None) -> int:
    """Print how to go on, and an error raised while stopping, which is often only a consequence."""
    stopped_by = received() or signal.SIGINT
    by = "" if stopped_by is signal.SIGINT else f" by {stopped_by.name}"
    with suppress(OSError):
        if error is not None:
            text = redact(f"krscale: while stopping: {type(error).__name__}: {_in_a_line(error)}")
            show(text, file=sys.stderr)
        show(f"krscale: interrupted{by}; the same command again continues.", file=sys.stderr)
    watch_exit()
    return exit_code()


def add_experiment_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the experiment file and `--set`, which every command that runs an experiment takes."""
    parser.add_argument(
        "experiment",
        nargs="?",
        metavar="EXPERIMENT.toml",
        help="what to run; without it the embedded default, scikit-learn's digits",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change any field by its dotted path, e.g. --set train.num_epochs=20; repeatable",
    )


def add_new_data_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--new-data`, which commands with a run folder take."""
    parser.add_argument(
        "--new-data",
        action="store_true",
        help="where the images or the teacher are others than when the run began: put its results "
        "aside within the run folder, and begin again",
    )


def seconds(text: str) -> float:
    """Parse a time to wait, as the type of an argument."""
    number = float(text)
    if not 0.0 <= number <= _LONGEST_WAIT:
        raise argparse.ArgumentTypeError(f"must be from 0 to {_LONGEST_WAIT:,} (got {text})")
    return number


def positive(text: str) -> int:
    """Parse a whole number of at least 1, as the type of an argument."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1 (got {number})")
    return number
