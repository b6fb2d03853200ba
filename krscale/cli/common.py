"""What all commands share: their common arguments, and how they end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from krscale.errors import UserError
from krscale.redaction import redact

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141


def run_command(function: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Run a command and return its exit code.

    Args:
        function: Parses `argv`, does the work and returns the exit code.
        argv: Arguments without the program's name.

    Returns:
        What the function returned; 2 after a `UserError`, told on stderr; 130 after Ctrl-C;
        141 when whoever read stdout went away. Any other exception is a defect of krscale and
        passes with its traceback.
    """
    try:
        code = function(argv)
        sys.stdout.flush()
    except UserError as error:
        for line in redact(str(error)).splitlines():
            print(f"krscale: error: {line}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("krscale: interrupted; the same command again continues.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at exit, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_CLOSED_PIPE
    return code


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
