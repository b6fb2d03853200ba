"""`python -m krscale.report RUN`: print the table of a run and redraw its figure."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from krscale.config import load
from krscale.curve import curve_table, draw_curve, read_curve
from krscale.doors import run_door
from krscale.errors import UserError
from krscale.provenance import find_run

FIGURE_FILE = "curve.png"


def parser() -> argparse.ArgumentParser:
    """Return the command line of this door."""
    found = argparse.ArgumentParser(
        prog="krscale report",
        description="Print test accuracy versus capacity of a finished run, and redraw its "
        f"{FIGURE_FILE} from curve.json.",
    )
    found.add_argument("run", metavar="RUN", help="a run's folder, or its name")
    found.add_argument(
        "--storage-path",
        metavar="FOLDER",
        help="folder of all runs, where a name is looked up (default: that of the experiments)",
    )
    found.add_argument("--json", action="store_true", help="print curve.json on stdout")
    return found


def run(arguments: Sequence[str]) -> int:
    """Parse, read, draw, print."""
    options = parser().parse_args(arguments)
    run_path = find_run(options.run, Path(options.storage_path or load().storage_path))
    curve = read_curve(run_path)
    figure = run_path / FIGURE_FILE
    try:
        draw_curve(curve, figure)
    except OSError as error:
        raise UserError(f"{figure}: cannot be written: {error.strerror or error}.") from None
    if options.json:
        print(curve.model_dump_json(indent=2))
        return 0
    Console().print(curve_table(curve))
    print(f"Figure: {figure}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; `argv` without the program's name, by default from the command line."""
    return run_door(run, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
