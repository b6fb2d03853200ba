"""`python -m krscale.teach [EXPERIMENT.toml]`: prepare data, teacher and its knowledge, no more."""

from __future__ import annotations

import argparse

from krscale.cli.common import add_experiment_arguments
from krscale.showing import show

DESCRIPTION = (
    "Prepare the data, train or load the teacher, fit its probes and fill the "
    "store that all trials share. A later search finds them there."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add_experiment_arguments(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(options: argparse.Namespace) -> int:
    """Prepare data, teacher and knowledge, and print a summary."""
    # Imported here, so that --help and wrong arguments need not wait for it.
    from krscale.config import load

    experiment = load(options.experiment, options.set)
    from krscale.cluster.nodes import reach_storage
    from krscale.cluster.store_shards import write_on_workers
    from krscale.cluster.teacher import teach_on_workers
    from krscale.progress import Progress
    from krscale.setup.prepare import Setup, pick_device, prepare_knowledge

    with Progress(quiet=options.quiet, planned={}) as progress:
        pick_device(experiment.train.device)  # refuses a missing GPU before the work
        reach_storage(experiment, on_nodes=False)  # store_shards checks the nodes that write
        setup = Setup.resolve(experiment, progress)
        if not options.quiet:
            progress.note(setup.dataset.summary())
        prepared = prepare_knowledge(setup, progress, write_on_workers, teach_on_workers)
    teacher = prepared.teacher
    show(
        f"Teacher: {teacher.model} width {teacher.width}, {teacher.num_parameters:,} parameters, "
        f"validation accuracy {teacher.val_accuracy:.2%}"
    )
    gains = ", ".join(f"{gain:.2f}" for gain in teacher.information_gain)
    show(f"Information gain of its taps, shallow to deep: {gains}")
    show(f"Data: {prepared.data_path}\nTeacher: {prepared.teacher_path}")
    show(f"Store: {prepared.store_path}")
    for kind, path in prepared.feature_paths.items():
        show(f"Features ({kind}): {path}")
    return 0
