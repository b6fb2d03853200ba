"""`python -m krscale.distill [EXPERIMENT.toml]`: distil one student, on one worker or many."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from krscale.cli.common import add_experiment_arguments, run_command
from krscale.config import load


def parser() -> argparse.ArgumentParser:
    """Return the command line of this command."""
    found = argparse.ArgumentParser(
        prog="krscale distill",
        description="Train one student of size distill.capacity with the method distill.method; "
        "with train.num_workers of 2 or more, through Ray Train.",
    )
    add_experiment_arguments(found)
    found.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    found.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return found


def run(arguments: Sequence[str]) -> int:
    """Parse, call one function."""
    options = parser().parse_args(arguments)
    experiment = load(options.experiment, options.set)
    # Ray and MLflow take seconds to import; a refused config must not wait for them.
    from krscale.runs.distill import distil

    distil(experiment, as_json=options.json, quiet=options.quiet)
    return 0


def main() -> int:
    """Entry point."""
    return run_command(run, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
