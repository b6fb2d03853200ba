"""What the workers of trials take of the cluster, and whether it can ever give that."""

from __future__ import annotations

from collections.abc import Mapping

import ray

from krscale.cluster.connect import require
from krscale.config import Experiment
from krscale.errors import UserError


def has_gpus(experiment: Experiment) -> bool:
    """Return whether trials are to run on GPUs; those asked for by name may still have to join."""
    if experiment.train.device == "auto":
        return _num_gpus() > 0
    return experiment.train.device == "cuda"


def gpus_per_worker(experiment: Experiment) -> float:
    """Return the GPUs of each worker, where trials have several: whole ones, or none.

    With `search.gpus_per_trial = "auto"` it is one, unless the cluster has fewer than a trial has
    workers: then all train on CPUs, as with `krscale distill`.

    Raises:
        UserError: If workers were to share a GPU, which the exchange between GPUs (nccl) cannot.
    """
    gpus, train = experiment.search.gpus_per_trial, experiment.train
    if gpus == "auto":
        wanted = train.device == "cuda" or (
            train.device == "auto" and _num_gpus() >= train.num_workers
        )
        return 1.0 if wanted else 0.0
    if 0.0 < gpus < 1.0 or (gpus == 0.0 and train.device == "cuda"):
        raise UserError(
            f"search.gpus_per_trial: {gpus:g} with train.num_workers = {train.num_workers} and "
            f"train.device = {train.device!r}: each worker of a trial needs a GPU of its own. "
            f"Allowed: 'auto', 1, 2, ..., and 0 to train on CPUs."
        )
    return gpus


def require_workers(experiment: Experiment, resources: Mapping[str, float]) -> None:
    """Wait until the cluster has the resources of one trial, free or not.

    Args:
        experiment: The search.
        resources: What each worker reserves.

    Raises:
        UserError: If it stays too small; says what its nodes have.
    """
    where = "search.cpus_per_trial, search.gpus_per_trial"
    num_workers = experiment.train.num_workers
    if num_workers > 1:
        where = f"train.num_workers, {where}"
    require(resources, experiment.cluster, where, num_workers)


def _num_gpus() -> float:
    return float(ray.cluster_resources().get("GPU", 0.0))  # type: ignore[no-untyped-call]
