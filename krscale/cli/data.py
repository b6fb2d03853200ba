"""`krscale data check SOURCE`: what a source of images holds, and what is wrong with it."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from krscale.config import load
from krscale.showing import clipped, show, terminal

if TYPE_CHECKING:
    from rich.table import Table

    from krscale.data.check import Check

EXIT_REFUSED = 1
_LISTED = 10  # groups of copies, and image sizes, that are shown as text; --json has all
_ROWS = 60  # classes that the table shows

DESCRIPTION = "Images: what a source of them holds."


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    check = commands.add_parser(
        "check",
        help="read every image once, count, and name what is wrong",
        description="Read every image of a source once and say what is there: images of each class "
        "and split, sizes and modes of the files, all that cannot be read, copies, images under "
        "two labels, classes too small to be split, what was passed over. Exit code 0: it can be "
        "learned from; 1: teach and tune would refuse it, for the reasons given; 2: there is "
        "nothing to look at. Writes nothing.",
    )
    check.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="a folder or file of images, the name of an embedded source, or the TOML file of an "
        "experiment; without it the embedded experiment's",
    )
    check.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change any field of the experiment, e.g. --set data.files.image_size=64; repeatable",
    )
    check.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    check.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(options: argparse.Namespace) -> int:
    """Check the source and print the result."""
    source = options.source or ""
    is_experiment = source.endswith(".toml")
    load(source if is_experiment else None, options.set)  # refuses a wrong field at once
    from krscale.data.check import check_data
    from krscale.data.sources.guessing import guess_source
    from krscale.progress import Progress

    guessed = [] if is_experiment or not source else guess_source(source, _is_named(options.set))
    experiment = load(source if is_experiment else None, [*guessed, *options.set])
    with Progress(quiet=options.quiet, planned={}) as progress:
        progress.phase("data")
        found = check_data(experiment.data, progress.advance)
    if options.json:
        json.dump(_content(found), sys.stdout, indent=2)
        show()
    else:
        _show(found)
    return EXIT_REFUSED if found.problems else 0


def _is_named(settings: list[str]) -> bool:
    """Return whether the user names the source that reads the path, so that it is not guessed."""
    return any(setting.partition("=")[0].strip() == "data.source" for setting in settings)


def _content(found: Check) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        **asdict(found),
        "copies": [
            {"places": group.places, "labels": group.labels, "splits": group.splits}
            for group in found.copies
        ],
    }


def _show(found: Check) -> None:

    console = terminal() if sys.stdout.isatty() else terminal(width=120)
    show(found.summary())
    console.print(_table(found))
    for title, counts in (("Modes", found.modes), ("Sizes (height x width)", found.sizes)):
        if counts:
            listed = ", ".join(f"{name} {n}" for name, n in list(counts.items())[:_LISTED])
            show(f"{title}: {listed}{', ...' if len(counts) > _LISTED else ''}")
    _list("Cannot be read", found.unreadable)
    _list("Of another size than the first", found.misfits)
    if found.too_small:
        classes = (f"{name}: {n} different images" for name, n in found.too_small.items())
        _list("Classes too small to be split", tuple(classes))
    _list("One image under several labels", _groups(found, "differ"))
    _list("Copies in several splits", _groups(found, "across"))
    _list("Copies", _groups(found, ""))
    for note in found.notes:
        show(note)
    for problem in found.problems:
        show(f"Would be refused: {problem}")
    if not found.problems:
        show("Nothing to object to.")


def _table(found: Check) -> Table:
    from rich.table import Table

    table = Table("class", *found.counts, "all")
    rows = [(name, [n.get(name, 0) for n in found.counts.values()]) for name in found.classes]
    rows.sort(key=lambda row: sum(row[1])) if len(rows) > _ROWS else None
    for name, counts in rows[:_ROWS]:
        table.add_row(clipped(name), *map(str, counts), str(sum(counts)))
    if len(rows) > _ROWS:
        table.add_row(f"... {len(rows) - _ROWS} larger classes")
    totals = [sum(of_class.values()) for of_class in found.counts.values()]
    table.add_section()
    table.add_row("all", *map(str, totals), str(sum(totals)))
    return table


def _groups(found: Check, kind: str) -> tuple[str, ...]:
    """Return lines with the places of copies: those of one kind, or those of no kind."""
    chosen = [
        group
        for group in found.copies
        if (getattr(group, kind) if kind else not (group.across or group.differ))
    ]
    lines = []
    for group in chosen[:_LISTED]:
        pairs = zip(group.places, group.labels, group.splits, strict=True)
        lines.append(
            " = ".join(
                f"{place} ({label if kind == 'differ' else split})" if kind else place
                for place, label, split in pairs
            )
        )
    if len(chosen) > _LISTED:
        lines.append(f"... {len(chosen) - _LISTED} more (--json has all)")
    return tuple(lines)


def _list(title: str, lines: tuple[str, ...]) -> None:
    if lines:
        show(f"{title}:")
        for line in lines:
            show(f"  {line}")
