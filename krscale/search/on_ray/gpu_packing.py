"""Decide how many trials share a GPU, by measuring the largest student before the search.

Ray assigns shares of a GPU but does not track its memory. So the largest student takes a few steps
on a GPU of the cluster, in its own process, with every method and the ends of its search space. The
peak memory of that process is what a trial needs. The driver may have no GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from krscale.cluster.connect import require
from krscale.cluster.lost_worker import lost_worker
from krscale.config import Experiment
from krscale.errors import UserError
from krscale.files import write_json
from krscale.models.given import Builder, available, given
from krscale.search.on_ray.group_resources import gpus_per_worker, has_gpus
from krscale.search.space.distributions import extremes
from krscale.search.space.space import SearchSpace
from krscale.search.studies.size_resolver import SizeResolver
from krscale.setup.gpu_memory import (
    SPARE_SHARE,
    GpuMemory,
    MemoryReader,
    ProbeCandidate,
    gpu_share,
    probe,
    read_memory,
    trials_per_gpu,
)
from krscale.setup.network_builder import student_models
from krscale.setup.prepare import Prepared

PACKING_FILE = "packing.json"


def candidates(
    experiment: Experiment, space: SearchSpace, size_resolver: SizeResolver, capacity: str
) -> list[ProbeCandidate]:
    """Return students of one size that together use every method and both ends of every field.

    Students beyond a limit are left out, as in the search.
    """
    found = []
    named = {"distill.capacity": capacity} if experiment.ladder.students else {}
    for method in experiment.search.methods:
        for corner in ({}, *_corners(space, method)):
            values = {**corner, **named}
            if not size_resolver.excess(capacity, values):
                found.append(
                    ProbeCandidate(method, size_resolver.size(capacity, values).width, values)
                )
    return found


def gpus_per_trial(
    experiment: Experiment,
    prepared: Prepared,
    students: Callable[[], Sequence[ProbeCandidate]],
    say: Callable[[str], None],
    read: MemoryReader = read_memory,
) -> float:
    """Return the GPUs that Ray reserves for each worker of a trial, on the connected Ray.

    If trials have several workers, each gets whole GPUs (`group_resources.py`). For one worker, a
    number in `search.gpus_per_trial` is used unchanged. With `auto`, a worker with a GPU measures
    the memory. The result is printed, and kept as `packing.json` in the run folder.

    Args:
        experiment: The search.
        prepared: Data, teacher and store, on storage that all workers can read.
        students: Returns the students to try; called if there is a GPU.
        say: Prints a line for the user with the result.
        read: As for `probe`.

    Raises:
        UserError: As for `probe`, or if `train.device` requires a GPU and the cluster has none.
    """
    config = experiment.search
    if experiment.train.most_workers > 1:
        return gpus_per_worker(experiment)
    if config.gpus_per_trial != "auto":
        return config.gpus_per_trial
    if not has_gpus(experiment):
        return 0.0
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()  # this process may have trained the teacher on the same GPU
    memory = _probe_on_worker(experiment, prepared, students(), read)
    if memory is None:
        say("search.gpus_per_trial: Ray has GPUs, but torch sees none; trials run on CPUs.")
        return 0.0
    together = trials_per_gpu(memory, _cpus_per_gpu(), config.cpus_per_trial)
    share = gpu_share(together)
    found = asdict(memory) | {"spare_share": SPARE_SHARE, "trials_per_gpu": together}
    write_json(experiment.run_path / PACKING_FILE, found | {"gpus_per_trial": share})
    say(
        f"search.gpus_per_trial = {share:g}: {together} trials share a GPU; the largest student "
        f"takes {memory.peak_bytes / 2**30:.2f} of {memory.total_bytes / 2**30:.1f} GiB "
        f"({memory.name})"
    )
    return share


def _corners(space: SearchSpace, method: str) -> Iterator[dict[str, Any]]:
    """Yield settings that together use each extreme value of each field, if its conditions hold."""
    ends = {path: extremes(found) for path, found in space.by_method[method].items()}
    for number in range(max(map(len, ends.values()), default=0)):
        values: dict[str, Any] = {}
        for path, extreme in ends.items():
            if all(condition.holds(values) for condition in space.conditions_of(method, path)):
                values[path] = extreme[number % len(extreme)]
        yield values


def _cpus_per_gpu() -> float:
    """Return the cores per GPU of the machine that has the most."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return max(
        (float(node.get("CPU", 0.0)) / node["GPU"] for node in nodes if node.get("GPU")),
        default=1.0,
    )


def _probe_here(own: Mapping[str, Builder], *arguments: Any) -> GpuMemory | None:
    with available(own):
        return probe(*arguments)


def _probe_on_worker(
    experiment: Experiment,
    prepared: Prepared,
    students: Sequence[ProbeCandidate],
    read: MemoryReader,
) -> GpuMemory | None:
    require({"GPU": 1.0}, experiment.cluster, "search.gpus_per_trial")
    # The process ends with its task, which frees its GPU memory.
    task: Any = ray.remote(num_cpus=0, num_gpus=1, max_calls=1)(_probe_here)
    own = given(student_models(experiment))
    try:
        found: GpuMemory | None = ray.get(task.remote(own, experiment, prepared, students, read))
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    except RayError as error:
        work = "search.gpus_per_trial: measuring the largest student"
        raise lost_worker(error, work) or error from error
    return found
