"""Students that share one GPU as in a search, each in a separate process."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch

from krscale.config import Experiment, load
from krscale.parallel import Workers
from krscale.setup.build import Assets, build_training
from krscale.setup.gpu_memory import (
    GpuMemory,
    MemoryReader,
    ProbeCandidate,
    probe,
    read_memory,
    trials_per_gpu,
)
from krscale.setup.networks import Networks
from krscale.setup.prepare import Prepared, prepare
from krscale.setup.sizes import find_size
from parts.gpu import Sizes, make_step

WAIT_SECONDS = 240.0
"""Longest wait for all processes to be ready: each imports torch and takes its first step."""


class Gate(Protocol):
    """Interface of a `multiprocessing.Barrier`."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for all processes."""


class Student(NamedTuple):
    """The result of one process.

    Attributes:
        samples_per_second: Rate of its own steps, in the same period as all others.
        peak_mib: Peak memory of its tensors; 0 on the CPU.
    """

    samples_per_second: float
    peak_mib: int


def together(
    device: torch.device, sizes: Sizes, run: Callable[..., list[Any]] | None = None
) -> dict[str, dict[str, float]]:
    """Return the throughput of several simultaneous students over that of one.

    Args:
        device: Where they train.
        sizes: Of networks and batches; `sizes.together` are the numbers of students.
        run: `run_processes`; tests pass another.
    """
    start = run or run_processes
    found: dict[str, dict[str, float]] = {}
    one = 0.0
    for number in sizes.together:
        students = start(train_student, number, device, sizes)
        rate = sum(student.samples_per_second for student in students)
        one = one or rate / number
        found[str(number)] = {
            "samples_per_second": round(rate),
            "over_one": round(rate / one, 2),
            "peak_mib_each": max(student.peak_mib for student in students),
        }
    return found


def train_student(gate: Gate, device: torch.device, sizes: Sizes) -> Student:
    """Train one student for `sizes.seconds`, beginning when all others are ready."""
    torch.set_num_threads(1)
    step = make_step(device, sizes, "bf16", compiled=False)
    float(step())
    gate.wait(WAIT_SECONDS)
    started, steps = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < sizes.seconds or not steps:
        float(step())  # waits for the device
        steps += 1
    passed = time.perf_counter() - started
    on_gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(device) >> 20 if on_gpu else 0
    gate.wait(WAIT_SECONDS)  # no process ends while others are still timed
    return Student(steps * sizes.batch / passed, peak)


def memory(
    device: torch.device,
    sizes: Sizes,
    run: Callable[..., list[Any]] | None = None,
    read: MemoryReader = read_memory,
) -> dict[str, Any]:
    """Return the memory that the probe of `search.gpus_per_trial = "auto"` finds, and a trial's.

    Each runs in a separate process, one after the other, as CUDA also counts the memory of other
    processes on the GPU.
    """
    start = run or run_processes
    with tempfile.TemporaryDirectory() as folder:
        experiment = load(None, [*memory_task(sizes, device), f"storage_path={folder!r}"])
        prepared = prepare(experiment, _Silent())
        probed, taken = (
            start(work, 1, experiment, prepared, read)[0] for work in (probe_memory, trial_memory)
        )
    cores = float(os.cpu_count() or 1)
    return {
        "probed_mib": probed.peak_bytes >> 20,
        "trial_mib": taken.peak_bytes >> 20,
        "trial_over_probe": round(taken.peak_bytes / probed.peak_bytes, 3),
        "of_mib": probed.total_bytes >> 20,
        "trials_per_gpu": trials_per_gpu(probed, cores, 1.0),
    }


def memory_task(sizes: Sizes, device: torch.device) -> tuple[str, ...]:
    """Return settings of a small task with images and networks of these sizes."""
    return (
        "data.source=glyphs",
        f"data.glyphs.image_size={sizes.side}",
        f"data.glyphs.num_train={8 * sizes.batch}",
        "data.glyphs.num_val=100",
        "data.glyphs.num_test=100",
        f"teacher.width={sizes.teacher}",
        "teacher.num_epochs=1",
        "teacher.allow_poor=true",
        "views.num_views=2",
        "distill.capacity='1/4'",
        f"train.global_batch_size={sizes.batch}",
        "train.num_epochs=2",
        f"train.device={device.type}",
        "train.precision=bf16",
    )


def probe_memory(
    gate: Gate, experiment: Experiment, prepared: Prepared, read: MemoryReader
) -> GpuMemory:
    """Probe the memory as a search does before its first trial."""
    gate.wait(WAIT_SECONDS)
    width = _width(experiment, prepared)
    candidate = ProbeCandidate(experiment.distill.method, width, {})
    return _found(probe(experiment, prepared, [candidate], read))


def trial_memory(
    gate: Gate, experiment: Experiment, prepared: Prepared, read: MemoryReader
) -> GpuMemory:
    """Train all epochs as a trial does; return the memory."""
    gate.wait(WAIT_SECONDS)
    device = torch.device(experiment.train.device)
    width = _width(experiment, prepared)
    training = build_training(experiment, Assets.open(prepared), width, Workers.alone(device))
    while not training.finished:
        training.run_epoch()
    return _found(read(device))


def run_processes(work: Callable[..., Any], number: int, *arguments: Any) -> list[Any]:
    """Return the results of `work(gate, *arguments)` in `number` new processes at once."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        gate = manager.Barrier(number)
        with context.Pool(number, maxtasksperchild=1) as pool:
            waiting = [pool.apply_async(work, (gate, *arguments)) for _ in range(number)]
            return [each.get(timeout=WAIT_SECONDS) for each in waiting]


def _width(experiment: Experiment, prepared: Prepared) -> int:
    return find_size(Networks.resolve(experiment, Assets.open(prepared).dataset)).width


def _found(memory: GpuMemory | None) -> GpuMemory:
    if memory is None:
        raise RuntimeError("this process has no GPU")
    return memory


class _Silent:
    def phase(self, title: str) -> None:
        """Do nothing."""

    def advance(self, done: int, total: int) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""
