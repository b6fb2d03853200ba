"""`python -m krscale.tune [EXPERIMENT.toml]`: distil a ladder of students and show the curve."""

from __future__ import annotations

import argparse

from krscale.cli.common import add_experiment_arguments, add_new_data_argument

DESCRIPTION = (
    "Search a ladder of student sizes with Ray Tune and Optuna; end with the "
    "table and figure of test accuracy versus capacity."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add_experiment_arguments(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved experiment, the models of every size and the planned work; "
        "touch nothing",
    )
    parser.add_argument(
        "--new-space",
        action="store_true",
        help="go on though the search space has changed: methods whose space has changed start "
        "anew",
    )
    add_new_data_argument(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    parser.add_argument("--quiet", action="store_true", help="no live view")


def run(options: argparse.Namespace) -> int:
    """Call one function, print."""
    # Imported here, so that --help and wrong arguments are answered at once.
    from krscale.search.studies.extending import load_or_extend

    experiment = load_or_extend(options.experiment, options.set)
    if options.dry_run:
        from krscale.search.plan import describe_plan

        print(describe_plan(experiment))
        return 0
    # Ray, Optuna and MLflow take seconds to import; a refused config must not wait for them.
    from krscale.search.session import run_session

    run_session(
        experiment,
        as_json=options.json,
        quiet=options.quiet,
        new_space=options.new_space,
        new_data=options.new_data,
    )
    return 0
