"""`python -m krscale.teach [EXPERIMENT.toml]`: prepare data, teacher and its knowledge, no more."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from krscale.cli.common import add_experiment_arguments, run_command
from krscale.config import load


def parser() -> argparse.ArgumentParser:
    """Return the command line of this command."""
    found = argparse.ArgumentParser(
        prog="krscale teach",
        description="Prepare the data, train or load the teacher, fit its probes and fill the "
        "store that all trials share. A later search finds them there.",
    )
    add_experiment_arguments(found)
    found.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return found


def run(arguments: Sequence[str]) -> int:
    """Parse, call one function, print."""
    options = parser().parse_args(arguments)
    experiment = load(options.experiment, options.set)
    from krscale.cluster.store_shards import write_on_workers
    from krscale.progress import Progress
    from krscale.setup.assemble import prepare

    with Progress(quiet=options.quiet, planned={}) as progress:
        prepared = prepare(experiment, progress, write_on_workers)
    teacher = prepared.teacher
    print(
        f"Teacher: {teacher.model} width {teacher.width}, {teacher.num_parameters:,} parameters, "
        f"validation accuracy {teacher.val_accuracy:.2%}"
    )
    gains = ", ".join(f"{gain:.2f}" for gain in teacher.information_gain)
    print(f"Information gain of its taps, shallow to deep: {gains}")
    print(f"Data: {prepared.data_path}\nTeacher: {prepared.teacher_path}")
    print(f"Store: {prepared.store_path}")
    for kind, path in prepared.feature_paths.items():
        print(f"Features ({kind}): {path}")
    return 0


def main() -> int:
    """Entry point."""
    return run_command(run, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
