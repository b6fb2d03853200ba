"""`python -m krscale.insight RUN`: which settings mattered, and which win at which capacity."""

from __future__ import annotations

import argparse
import json
import shlex
import sys

from krscale.config import load
from krscale.runs.folder import find_run, storage_folder
from krscale.showing import show, terminal

DESCRIPTION = (
    "Say of a search, finished or not, which settings mattered at which size, and "
    "which granularity and sparsity came near the best; from its journal alone. Writes "
    "insight.json and insight.png into the run's folder."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument("run", metavar="RUN", help="a run's folder, or its name")
    parser.add_argument(
        "--storage-path",
        metavar="FOLDER",
        help="folder of all runs, where a name is looked up (default: that of the experiments)",
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON on stdout")


def run(options: argparse.Namespace) -> int:
    """Compute the insight, write its files and print it."""
    folder = find_run(options.run, storage_folder(options.storage_path or load().storage_path))
    # Optuna and matplotlib take seconds to import.
    from krscale.search.insight_figure import record_insight
    from krscale.search.insight_table import insight_tables

    insight, files = record_insight(folder)
    if options.json:
        show(json.dumps(insight.model_dump(mode="json"), indent=2))
        return 0

    console = terminal() if sys.stdout.isatty() else terminal(width=120)
    for table in insight_tables(insight):
        console.print(table)
        console.print()
    for file in files:
        show(f"{'Data' if file.suffix == '.json' else 'Figure'}: {file}")
    journal = shlex.quote(str(folder / "journal.log"))
    show(f"More: optuna-dashboard {journal} (pip install optuna-dashboard)")
    return 0
