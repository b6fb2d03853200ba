"""`krscale ui`: MLflow's server on the runs of a storage, and the address of their curves."""

from __future__ import annotations

import argparse
import json

from krscale.cli.common import add_experiment_arguments
from krscale.config import load
from krscale.errors import UserError
from krscale.runs.folder import storage_folder
from krscale.showing import show

DESCRIPTION = (
    "Serve the runs that MLflow has recorded, on this machine only, and print the address that "
    "opens on the curves of all searches. Ctrl-C ends it. Exit code 2: there is nothing to serve, "
    "or no port to serve it on."
)
_THIS_MACHINE = "127.0.0.1"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add_experiment_arguments(parser)
    parser.add_argument(
        "--storage-path",
        metavar="FOLDER",
        help="folder of all runs, with mlflow.db (default: that of the experiments)",
    )
    parser.add_argument(
        "--uri",
        default="",
        help="database to serve, e.g. sqlite:////folder/mlflow.db (default: where the experiments "
        "are recorded)",
    )
    parser.add_argument(
        "--port", type=_port, default=5000, metavar="N", help="where to listen (5000)"
    )
    parser.add_argument(
        "--host",
        default=_THIS_MACHINE,
        help=f"where to listen ({_THIS_MACHINE}); with 0.0.0.0 whoever reaches this machine can "
        "read and change the runs",
    )


def run(options: argparse.Namespace) -> int:
    """Check the database and the port, serve, and print the address once the server answers."""
    if options.storage_path:
        storage_folder(options.storage_path)
    given = {"storage_path": options.storage_path, "tracking.uri": options.uri}
    changes = [f"{key}={json.dumps(value)}" for key, value in given.items() if value]
    experiment = load(options.experiment, [*options.set, *changes])
    from krscale.tracking.address import resolve_address
    from krscale.tracking.serving import check_database, check_port, serve

    address = resolve_address(experiment.tracking.uri, experiment.storage_folder)
    if address.artifact_root is None:
        raise UserError(f"the runs are recorded on an MLflow server; open it at {address.shown}")
    check_database(address)
    check_port(options.host, options.port)
    show("Starting MLflow; Ctrl-C ends it.", flush=True)
    # Printed below the server's output, whose address opens on a page for language models.
    return serve(
        address,
        options.host,
        options.port,
        experiment.tracking.experiment,
        lambda charts: show(f"\nThe curves of all searches:\n    {charts}\n", flush=True),
    )


def _port(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if not 1 <= number <= 65_535:
        raise argparse.ArgumentTypeError(f"must be 1 to 65535 (got {text})")
    return number
