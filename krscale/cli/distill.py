"""`python -m krscale.distill [EXPERIMENT.toml]`: distil one student, on one worker or many."""

from __future__ import annotations

import argparse

from krscale.cli.common import add_experiment_arguments, add_new_data_argument

DESCRIPTION = (
    "Train one student of size distill.capacity with the method distill.method; "
    "with train.num_workers of 2 or more, through Ray Train."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add_experiment_arguments(parser)
    add_new_data_argument(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(options: argparse.Namespace) -> int:
    """Train the student."""
    # Imported here, so that --help and wrong arguments need not wait for it.
    from krscale.config import load

    experiment = load(options.experiment, options.set)
    # Ray and MLflow take seconds to import; a refused config must not wait for them.
    from krscale.runs.distill import distil

    distil(experiment, as_json=options.json, quiet=options.quiet, new_data=options.new_data)
    return 0
