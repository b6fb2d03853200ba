"""The console script `krscale`: one parser for all commands, and one way in for all of them."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Sequence
from typing import Any

from krscale.cli.common import run_command
from krscale.errors import nearest
from krscale.showing import show

COMMANDS = {
    "tune": "distil a ladder of students and show accuracy versus capacity",
    "distill": "distil one student, on one worker or many",
    "teach": "prepare data, teacher and its knowledge",
    "report": "print, draw and explain the result of a run, or compare several",
    "insight": "say which settings mattered, and which won at which capacity",
    "pick": "choose a student of a finished run, and export it",
    "data": "say what a source of images holds, and what is wrong with it",
    "taps": "list the blocks of a network that can be taps, with shapes",
    "teacher": "check which preprocessing and class order suit a teacher",
    "space": "check a search space, and list what it varies",
    "store": "check or describe the stored predictions of a run's teacher",
    "verify": "compare all files of a run with what was written",
    "clean": "remove what no run uses, after a question",
    "ui": "open MLflow on the curves of all searches",
    "sync": "send MLflow what a run recorded while MLflow was away",
}
"""Name -> its line in `krscale --help`. `krscale.cli.NAME` has `configure` and `run`."""


class _Parser(argparse.ArgumentParser):
    """A parser that suggests the nearest valid command or option; also used for each command."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; a command's parser reports its own unknown options, with its own usage."""
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            first = unknown[0].partition("=")[0]
            known = re.findall(r"(?<![\w-])--[\w-]+", self.format_help())
            hint = _hint(first, known) if first.startswith("--") else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}.{hint}")
        return options, unknown

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # argparse calls this with the words of each argument. An empty word is usually an unset
        # shell variable, and would be taken for the default: another experiment or folder.
        if action.nargs != argparse.PARSER and "" in arg_strings:
            raise argparse.ArgumentError(action, "expected a value, got an empty text")
        return super()._get_values(action, arg_strings)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        # argparse calls this for each value. Its own message lists the choices without a hint.
        if action.choices is not None and value not in action.choices:
            allowed = [str(choice) for choice in action.choices]
            problem = f"unknown {str(action.metavar).lower()} {str(value)!r}."
            hint = _hint(str(value), allowed)
            raise argparse.ArgumentError(None, f"{problem}{hint} Allowed: {', '.join(allowed)}.")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `krscale`, with a parser for each command.

    Commands import torch, Ray and MLflow when they run, so that the reply to `--help` and to a
    wrong argument is immediate.
    """
    parser = _Parser(
        prog="krscale",
        description="Which student size is enough, trained how, and how accurate will it be?",
        epilog="krscale COMMAND --help says more.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    for name, purpose in COMMANDS.items():
        module = importlib.import_module(f"krscale.cli.{name}")
        command = commands.add_parser(name, help=purpose, description=module.DESCRIPTION)
        module.configure(command)
        command.set_defaults(function=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name, and return its exit code.

    Args:
        argv: Arguments without the program's name; None takes those of the process.
    """
    return run_command(_run, sys.argv[1:] if argv is None else argv)


def _run(argv: Sequence[str]) -> int:
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.version:
        from importlib.metadata import version

        show(f"krscale {version('krscale')}")
        return 0
    if "function" not in options:
        parser.print_help()
        return 0
    return int(options.function(options))


def _hint(name: str, allowed: Sequence[str]) -> str:
    guess = nearest(name, allowed)
    return f" Did you mean {guess!r}?" if guess else ""
