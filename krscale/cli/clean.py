"""`krscale clean`: list what lies in a storage and no run needs; remove it once that is agreed."""

from __future__ import annotations

import argparse
import sys

from krscale.config import load
from krscale.errors import UserError
from krscale.showing import show

EXIT_KEPT = 1
DESCRIPTION = (
    "List the data, teachers (half trained ones as well) and stores in the cache that no run of "
    "the storage uses, and the records that Ray keeps in the folders of runs; remove them after a "
    "question. Runs, with their students, records and exports, are never removed. Exit code 0: "
    "removed, or nothing to remove, or not agreed; 1: some of it stays; 2: there is no such "
    "storage."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument(
        "--storage-path",
        metavar="FOLDER",
        help="folder of all runs (default: that of the experiments)",
    )
    parser.add_argument("--yes", action="store_true", help="remove without the question")


def run(options: argparse.Namespace) -> int:
    """List, ask, remove."""
    from krscale.runs.folder import storage_folder

    storage = storage_folder(options.storage_path or load().storage_path)
    if not storage.is_dir():
        raise UserError(
            f"{storage}: no such folder; name the folder of all runs with --storage-path."
        )
    # Here, as torch takes seconds to import.
    from krscale.runs.cleaning import find_unused, remove, still_unused

    unused, notes = find_unused(storage)
    for note in notes:
        show(f"krscale: {note}", file=sys.stderr)
    for each in unused:
        show(f"{each.num_bytes / 1e6:10,.1f} MB  {each.path}: {each.reason}")
    total = sum(each.num_bytes for each in unused)
    if not unused:
        show(f"{storage}: nothing to remove.")
        return 0
    if not (options.yes or _agreed(f"Remove {len(unused)} folders, {total / 1e6:,.1f} MB?")):
        show("Nothing was removed.")
        return 0
    agreed, taken = (unused, []) if options.yes else still_unused(storage, unused)
    freed, kept = remove(agreed)
    kept += taken
    for line in kept:
        show(f"krscale: {line}", file=sys.stderr)
    show(f"{freed / 1e6:,.1f} MB freed.")
    return EXIT_KEPT if kept else 0


def _agreed(question: str) -> bool:
    """Ask the question; without a terminal the answer is no."""
    if not sys.stdin.isatty():
        show(f"{question} There is no terminal to ask on; --yes removes them.")
        return False
    show(f"{question} [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
