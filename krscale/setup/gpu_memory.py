"""The memory that a trial takes of a GPU: measured on candidates, and how many trials that allows.

Without Ray, so that a GPU can be looked at wherever torch runs (`benchmarks/gpu_check.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from krscale.config import Experiment, with_values
from krscale.errors import UserError
from krscale.parallel import Workers
from krscale.setup.build import Assets, build_training, trial_experiment
from krscale.setup.prepare import Prepared, pick_device

SPARE_SHARE = 0.1
"""Of a GPU's memory left free: allocators fragment, and a probe of a few steps sees not all."""
_SMALLEST_SHARE = 10_000
"""Ray counts GPUs in ten-thousandths."""


@dataclass(frozen=True)
class GpuMemory:
    """A GPU and what one process took of it.

    Attributes:
        name: What the GPU is called.
        total_bytes: Its memory.
        peak_bytes: The most the process held: tensors, the allocator's cache, and CUDA's context
            with its kernels.
    """

    name: str
    total_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class ProbeCandidate:
    """A student that a trial might train, and the settings it would have."""

    method: str
    width: int
    values: Mapping[str, Any]


MemoryReader = Callable[[torch.device], GpuMemory | None]


def trials_per_gpu(memory: GpuMemory, cpus_per_gpu: float, cpus_per_trial: float) -> int:
    """Return how many trials share a GPU: as many as its memory holds and its cores can feed.

    Args:
        memory: What one trial takes, and of how much.
        cpus_per_gpu: Cores of the GPU's machine, for each of its GPUs.
        cpus_per_trial: Cores of a trial.
    """
    in_memory = int(memory.total_bytes * (1.0 - SPARE_SHARE) // memory.peak_bytes)
    on_cores = int(cpus_per_gpu / cpus_per_trial + 1e-6)
    return max(1, min(in_memory, on_cores, _SMALLEST_SHARE))


def gpu_share(num_trials: int) -> float:
    """Return the share with which so many trials fit one GPU, rounded down to what Ray can count.

    A seventh rounded to the nearest ten-thousandth, as Ray does, would leave room for six.
    """
    return _SMALLEST_SHARE // num_trials / _SMALLEST_SHARE


def read_memory(device: torch.device) -> GpuMemory | None:
    """Return what this process has taken of a GPU at its peak; None on the CPU.

    What other processes hold on that GPU counts as well: CUDA tells them apart for nobody. So the
    estimate is too large on a GPU that is shared, never too small.
    """
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device)
    beside = total - free - cached
    peak = torch.cuda.max_memory_reserved(device) + beside
    return GpuMemory(torch.cuda.get_device_name(device), total, peak)


def probe(
    experiment: Experiment,
    prepared: Prepared,
    students: Sequence[ProbeCandidate],
    read: MemoryReader = read_memory,
) -> GpuMemory | None:
    """Train every candidate for two steps, one after another as in a trial's actor.

    Args:
        experiment: The search.
        prepared: Data, teacher and store.
        students: What to train.
        read: Returns what this process has taken of the device.

    Returns:
        The memory at its peak, or None where this process has no GPU.

    Raises:
        UserError: If a student does not fit the GPU at all, or `train.device` asks for a GPU that
            torch does not see.
    """
    device = pick_device(experiment.train.device)
    if read(device) is None:
        return None
    assets = Assets.open(prepared)
    for student in students:
        own = trial_experiment(
            experiment, student.method, dict(student.values), experiment.train.seed
        )
        # Compiled code takes no more memory, and minutes to make.
        own = with_values(own, {"train.compile": False}, "probe")
        try:
            build_training(own, assets, student.width, Workers.alone(device)).rehearse()
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"search: a student of width {student.width} with method {student.method!r} does "
                f"not fit a GPU by itself ({str(error).splitlines()[0].rstrip('.')}). Take a "
                f"smaller train.global_batch_size, or leave out the largest of ladder.capacities."
            ) from None
    return read(device)
