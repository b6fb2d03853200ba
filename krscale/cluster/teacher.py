"""Train a teacher on several workers (`teacher.num_workers`)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import nn

from krscale.cluster.connect import connect
from krscale.cluster.nodes import reach_storage
from krscale.cluster.sending import check_arrival
from krscale.cluster.train import fit_on_workers
from krscale.config import Experiment
from krscale.data import Dataset, open_data
from krscale.models.given import Builder, given, keep
from krscale.parallel import Workers
from krscale.setup.network_builder import build_teacher
from krscale.setup.prepare import Reporter
from krscale.setup.teacher_training import build_teacher_training, naming_rate
from krscale.setup.weights import from_file
from krscale.storage.address import is_uri
from krscale.storage.folders import fetched
from krscale.storage.opening import open_storage
from krscale.storage.run_mirror import mirrored
from krscale.training.checkpoint import load_weights
from krscale.training.loop import Training


def teach_on_workers(
    experiment: Experiment, dataset: Dataset, reporter: Reporter, folder: Path, model: nn.Module
) -> None:
    """Train a teacher with Ray Train, on a cluster that this function joins or starts.

    Args:
        experiment: All settings; `teacher.num_workers` is the number of workers.
        dataset: The teacher's data, on storage that all workers can read.
        reporter: Receives the number of finished epochs.
        folder: Keeps an unfinished training, which continues after its last epoch. On a URI
            storage, only one driver at a time trains in it.
        model: Receives the trained weights.

    Raises:
        UserError: If the cluster can never give so many workers, or the training fails for a
            reason that the user can fix.
    """
    connect(experiment.cluster)
    reach_storage(experiment)
    name, num_epochs = experiment.teacher.model, experiment.teacher.num_epochs
    builders = given([name])
    check_arrival([name], builders, "teacher")
    build = partial(_teacher, experiment.without_credentials(), dataset, builders)
    weights = folder / "teacher.safetensors"

    def on_epoch(metrics: dict[str, float]) -> None:
        reporter.advance(int(metrics["epoch"]), num_epochs)

    folder.mkdir(parents=True, exist_ok=True)
    with mirrored(folder, reporter.note), naming_rate(experiment):
        fit_on_workers(build, experiment, "teacher", weights, on_epoch, reporter.note)
        load_weights(weights, model, where=str(weights))


def _teacher(
    experiment: Experiment, dataset: Dataset, builders: Mapping[str, Builder], workers: Workers
) -> Training:
    """Build the training in a worker."""
    keep(builders)
    storage = experiment.storage_path
    if is_uri(storage):
        open_storage(storage, experiment.cluster.cache_gb)
        dataset = open_data(fetched(dataset.path, storage))
    torch.manual_seed(experiment.teacher.seed)
    model = build_teacher(experiment, dataset, fresh=from_file(experiment.teacher))
    return build_teacher_training(experiment, dataset, model, workers)
