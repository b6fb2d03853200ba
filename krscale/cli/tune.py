"""`python -m krscale.tune [EXPERIMENT.toml]`: distil a ladder of students and show the curve."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from typing import TYPE_CHECKING

from krscale.cli.common import add_experiment_arguments, add_new_data_argument
from krscale.config import Experiment
from krscale.showing import show, terminal

if TYPE_CHECKING:
    from krscale.report import Curve
    from krscale.search.result import SearchResult

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
    """Run the search, or print its plan, and show the result."""
    # Imported here, so that --help and wrong arguments need not wait for it.
    from krscale.search.studies.extending import load_or_extend

    experiment = load_or_extend(options.experiment, options.set)
    if options.dry_run:
        from krscale.search.plan import describe_plan

        show(describe_plan(experiment))
        return 0
    # Ray, Optuna and MLflow take seconds to import; a refused config must not wait for them.
    from krscale.search.result import SearchResult
    from krscale.search.session import run_session

    # `krscale.search` does the same with an experiment, except that its errors name arguments.
    curve, how_to_open = run_session(
        experiment, quiet=options.quiet, new_space=options.new_space, new_data=options.new_data
    )
    _show(SearchResult(curve, experiment, how_to_open), as_json=options.json)
    return 0


def _show(result: SearchResult, *, as_json: bool) -> None:

    from krscale.report import curve_table, front_headings, front_table

    if as_json:
        json.dump(result.curve.model_dump(mode="json"), sys.stdout, indent=2)
        show()
        return
    terminal().print(curve_table(result.curve))
    if front_headings(result.curve):
        terminal().print(front_table(result.curve))
    show(f"Run:    {result.path} (curve.json, curve.png, curve.html, journal.log)")
    show("Next:")
    for command, purpose in next_steps(result.curve, result.experiment, result.how_to_open):
        show(f"  {command}\n      {purpose}")


def next_steps(
    curve: Curve, experiment: Experiment, how_to_open: tuple[str, str]
) -> list[tuple[str, str]]:
    """Return what a user can do with a finished search: commands and their purposes."""
    run = shlex.quote(str(experiment.run_path))
    steps = [(f"krscale report {run}", "a page that explains it to anyone: report.html")]
    if curve.pareto:
        size = curve.pareto[len(curve.pareto) // 2].num_parameters
        steps.append(
            (f"krscale pick {run} --max-params {size}", "the best student that fits, as ONNX")
        )
    command, address = how_to_open
    seen = "all trials, and the curves overlaid"
    if command:
        # `make ui` serves the default storage of the shell that it is called from.
        known = not experiment.tracking.uri and experiment.storage_path == Experiment().storage_path
        steps.append((f"make ui, or {command}" if known else command, f"{seen}: {address}"))
    elif address:
        steps.append((address, seen))
    return steps
