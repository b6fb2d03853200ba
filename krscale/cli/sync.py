"""`python -m krscale.sync RUN`: send MLflow what a run recorded while MLflow was away."""

from __future__ import annotations

import argparse

from krscale.cli.common import seconds
from krscale.config import load
from krscale.errors import DamagedFileError
from krscale.runs.experiment_file import last_start
from krscale.runs.folder import find_run, storage_folder
from krscale.runs.kinds import require_folder, require_run
from krscale.showing import show

EXIT_UNSENT = 1

DESCRIPTION = (
    "Send MLflow what a run recorded while MLflow was away, and again what is gone from it: "
    "deleted runs, experiments or databases. Nothing that it already has is recorded twice. Exit "
    "code 1: MLflow has not confirmed all of it. What it refuses for good is named and is no error."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument("run", metavar="RUN", help="a run's folder, or its name")
    parser.add_argument("--uri", default="", help="where to (default: where it was recorded)")
    parser.add_argument(
        "--storage-path",
        metavar="FOLDER",
        help="folder of all runs, where a name is looked up (default: that of the experiments)",
    )
    parser.add_argument(
        "--timeout", type=seconds, default=60.0, metavar="SECONDS", help="give up after (60)"
    )


def run(options: argparse.Namespace) -> int:
    """Send the events and print how many are left."""
    folder = find_run(options.run, storage_folder(options.storage_path or load().storage_path))
    require_folder(folder)
    # MLflow: seconds to import
    from krscale.tracking import Begun, has_record, num_refused, print_warning, sync
    from krscale.tracking.tracker import FOLDER
    from krscale.tracking.writer import REFUSED_FILE

    if not has_record(folder):  # a record shows that it is a run, whatever else is missing
        require_run(folder)

    try:
        known = last_start(folder)
    except DamagedFileError as error:  # the record may be enough
        print_warning(str(error))
        known = None
    begun = Begun(*known) if known else None
    unsent = sync(folder, options.uri, begun=begun, timeout=options.timeout)
    if unsent:
        unknown = f"MLflow has not confirmed {unsent} events"
        show(f"{folder}: {unknown}; run the same command again to send them.")
        return EXIT_UNSENT
    refused = num_refused(folder)
    but = f", except what it refused ({refused}, listed in {folder / FOLDER / REFUSED_FILE})"
    show(f"{folder}: MLflow has every event{but if refused else ''}.")
    return 0
