"""Resources that the workers of trials reserve, and whether the cluster can ever provide them."""

from __future__ import annotations

from collections.abc import Mapping

import ray

from krscale.cluster.connect import connect, require
from krscale.config import Experiment, SearchConfig
from krscale.search.check import refuse_shared_gpus


def trial_resources(config: SearchConfig, gpus_per_trial: float) -> dict[str, float]:
    """Return the resources of a trial; if it has several workers, those of each worker."""
    resources = {"CPU": config.cpus_per_trial, "GPU": gpus_per_trial}
    return {name: amount for name, amount in resources.items() if amount}


def has_gpus(experiment: Experiment) -> bool:
    """Return whether trials run on GPUs; GPUs demanded by `train.device` may still have to join."""
    if experiment.train.device == "auto":
        return _num_gpus() > 0
    return experiment.train.device == "cuda"


def gpus_per_worker(experiment: Experiment) -> float:
    """Return the GPUs of each worker, for trials with several workers: whole GPUs, or none.

    With `search.gpus_per_trial = "auto"` it is one, unless the connected cluster has fewer GPUs
    than a trial has workers: then all train on CPUs, as with `krscale distill`.

    Raises:
        UserError: As for `refuse_shared_gpus`.
    """
    refuse_shared_gpus(experiment)
    gpus, train = experiment.search.gpus_per_trial, experiment.train
    if gpus != "auto":
        return gpus
    enough = train.device == "auto" and _num_gpus() >= train.num_workers
    return 1.0 if enough or train.device == "cuda" else 0.0


def asks_for_more(experiment: Experiment) -> bool:
    """Return whether a trial requires more than the one core that every cluster has.

    Example:
        >>> asks_for_more(Experiment())
        False
    """
    search = experiment.search
    gpus = search.gpus_per_trial not in ("auto", 0.0)
    return experiment.train.num_workers > 1 or search.cpus_per_trial > 1.0 or gpus


def require_group(experiment: Experiment) -> None:
    """Connect to the cluster and wait until it has room for one trial with all its workers.

    Called before the teacher is trained: a search that needs more than the cluster has would train
    it in vain.

    Raises:
        UserError: As for `require_workers` and `gpus_per_worker`.
    """
    connect(experiment.cluster)
    require_workers(experiment, trial_resources(experiment.search, gpus_per_worker(experiment)))


def require_workers(experiment: Experiment, resources: Mapping[str, float]) -> None:
    """Wait until the cluster has the resources of one trial, free or not.

    Args:
        experiment: The search.
        resources: Resources that each worker reserves.

    Raises:
        UserError: If the cluster stays too small, with the resources of its nodes.
    """
    where = "search.cpus_per_trial, search.gpus_per_trial"
    num_workers = experiment.train.num_workers
    if num_workers > 1:
        where = f"train.num_workers, {where}"
    require(resources, experiment.cluster, where, num_workers)


def _num_gpus() -> float:
    return float(ray.cluster_resources().get("GPU", 0.0))  # type: ignore[no-untyped-call]
