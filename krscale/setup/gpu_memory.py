"""Measure the GPU memory of a trial on candidates, and how many trials a GPU can hold.

It does not use Ray, so that it works wherever torch runs (`benchmarks/gpu_check.py`).
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
"""Share of GPU memory to keep free: allocators fragment, and a few steps do not show the peak."""
_SMALLEST_SHARE = 10_000
"""Ray counts GPUs in units of 1/10,000."""


@dataclass(frozen=True)
class GpuMemory:
    """A GPU and the memory that one process used.

    Attributes:
        name: Name of the GPU.
        total_bytes: Memory of the GPU.
        peak_bytes: Peak memory of the process: tensors, the allocator's cache, and CUDA's context
            with its kernels.
    """

    name: str
    total_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class ProbeCandidate:
    """A student that a trial might train, with its settings."""

    method: str
    width: int
    values: Mapping[str, Any]


MemoryReader = Callable[[torch.device], GpuMemory | None]


def trials_per_gpu(memory: GpuMemory, cpus_per_gpu: float, cpus_per_trial: float) -> int:
    """Return how many trials share a GPU, as limited by its memory and the CPU cores.

    Args:
        memory: Peak memory of one trial, and total memory of the GPU.
        cpus_per_gpu: Cores of the machine per GPU.
        cpus_per_trial: Cores per trial.
    """
    in_memory = int(memory.total_bytes * (1.0 - SPARE_SHARE) // memory.peak_bytes)
    on_cores = int(cpus_per_gpu / cpus_per_trial + 1e-6)
    return max(1, min(in_memory, on_cores, _SMALLEST_SHARE))


def gpu_share(num_trials: int) -> float:
    """Return the GPU share per trial, rounded down to a multiple of Ray's smallest unit.

    1/7 rounded to the nearest 1/10,000, as Ray does, would leave room for only six trials.
    """
    return _SMALLEST_SHARE // num_trials / _SMALLEST_SHARE


def read_memory(device: torch.device) -> GpuMemory | None:
    """Return this process's peak use of GPU memory; None on the CPU.

    Memory of other processes on that GPU counts as well, since CUDA does not report it separately.
    On a shared GPU, the estimate is thus too large, but never too small.
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
    """Train every candidate for two steps, one after another, as in a trial's actor.

    Args:
        experiment: The search.
        prepared: Data, teacher and store.
        students: Candidates to train.
        read: Returns this process's peak memory on the device.

    Returns:
        The peak memory, or None if this process has no GPU.

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
        # Compiled code needs no more memory, but takes minutes to compile.
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
