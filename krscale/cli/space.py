"""`krscale space check FILE`: what a search space varies, or what is wrong with it."""

from __future__ import annotations

import argparse
import json
import sys

from krscale.config import load
from krscale.showing import show, terminal

DESCRIPTION = "Search spaces: the fields that a search varies."


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    check = commands.add_parser(
        "check",
        help="check every field of a space against an experiment, and list them",
        description="List, per method, every field of a space with its type, range, condition and "
        "the experiment's own value. Exit code 2: the space is refused, with a line for each "
        "mistake. Trains nothing and writes nothing.",
    )
    check.add_argument("space", metavar="SPACE", help="a TOML file, or the name of a shipped space")
    check.add_argument(
        "--experiment",
        metavar="EXPERIMENT.toml",
        help="whose networks and values it is checked against (default: the embedded experiment)",
    )
    check.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change its fields"
    )
    check.add_argument("--json", action="store_true", help="print the fields as JSON on stdout")


def run(options: argparse.Namespace) -> int:
    """Check the space and print it."""
    space = f"search.space={json.dumps(options.space)}"
    experiment = load(options.experiment, [*options.set, space])
    # Torch and Optuna take seconds to import; a refused config must not wait for them.
    from krscale.search.space.check import check_space
    from krscale.search.space.notes import notes_on_space
    from krscale.search.space.table import space_rows, space_tables

    found = check_space(experiment)
    if options.json:
        show(json.dumps(space_rows(found, experiment), indent=2))
        return 0

    console = terminal() if sys.stdout.isatty() else terminal(width=120)
    for table in space_tables(found, experiment):
        console.print(table)
        console.print()
    planned = dict.fromkeys(found.by_method, experiment.search.trials_per_size)
    for note in notes_on_space(found, planned):
        show(note)
    show(f"{found.source}: nothing to object to")
    return 0
