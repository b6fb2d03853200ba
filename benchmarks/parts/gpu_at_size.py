"""KR's cost over a plain step on a GPU, and the seconds of `docs/scaling.md` against real ones."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from krscale.config import load
from krscale.setup.network_builder import build_teacher
from krscale.setup.networks import Networks
from krscale.setup.sizes import ladder_sizes
from parts.at_size import JOB, NUM_CLASSES, Assumed, ImageNet, Size, small_images
from parts.gpu import Sizes
from parts.measuring import clock_for
from parts.setting import Setting
from parts.steps import measure_steps


def cost(device: torch.device, sizes: Sizes) -> list[dict[str, Any]]:
    """Return the time of steps of KR and KD with the store over plain ones, for each student.

    Args:
        device: Where they train.
        sizes: Of the images.
    """
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(
            Path(folder),
            f"data.glyphs.image_size={sizes.side}",
            f"data.glyphs.num_train={16 * sizes.batch}",
            "data.glyphs.num_val=64",
            "data.glyphs.num_test=64",
            f"train.global_batch_size={sizes.batch}",
            f"teacher.width={max(32, sizes.teacher)}",
            "teacher.num_epochs=1",
            "teacher.allow_poor=true",
            "views.num_views=2",
            f"train.device={device.type}",
        )
        return measure_steps(setting, 1 + sizes.steps // 10)


def against_paper(device: torch.device, sizes: Sizes) -> dict[str, dict[str, Any]]:
    """Return the microseconds per image in the networks of a job, and what the page assumes.

    Steps of plain training and the teacher's forward are timed in bf16 under autocast.

    Args:
        device: Where they run.
        sizes: Of the batches.
    """
    task, assumed = small_images(), Assumed()
    shape = (3, task.side, task.side)
    experiment = load(JOB, [])
    data = ImageNet(task.num_train, shape)
    networks = Networks.resolve(experiment, data)
    teacher = build_teacher(experiment, data)
    students = [networks.build_student(size.width) for size in ladder_sizes(networks)]
    work = [("teacher", teacher, task.teacher, training) for training in (False, True)]
    work += [
        ("student", student, size, True)
        for student, size in zip(students, task.students, strict=True)
    ]
    found = {}
    for name, network, size, training in work:
        seconds = _image_seconds(network, device, shape, sizes, training=training)
        kind = "step" if training else "forward"
        title = f"{name} of {size.parameters / 1e6:.2f} M, {kind}"
        found[title] = _compared(size, assumed, seconds, training=training)
    return found


def _compared(size: Size, assumed: Assumed, seconds: float, *, training: bool) -> dict[str, Any]:
    paper, bound = assumed.image_seconds(size, training=training)
    return {
        "us": round(1e6 * seconds, 2),
        "paper_us": round(1e6 * paper, 2),
        "over_paper": round(seconds / paper, 2),
        "bound": bound,
    }


def _image_seconds(
    network: nn.Module,
    device: torch.device,
    shape: tuple[int, int, int],
    sizes: Sizes,
    *,
    training: bool,
) -> float:
    """Return the seconds per image, in batches of the benchmark's size."""
    network = network.to(device).train(training)
    if device.type == "cuda":
        network = network.to(memory_format=torch.channels_last)
    images = torch.randn(sizes.batch, *shape, device=device)
    labels = torch.arange(sizes.batch, device=device) % NUM_CLASSES
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    def forward() -> None:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
            network(images)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16):
            loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimiser.step()

    work: Callable[[], None] = step if training else forward
    for _ in range(1 + sizes.steps // 10):
        work()
    clock, _ = clock_for(device)
    started = clock()
    for _ in range(sizes.steps):
        work()
    return max(1e-9, (clock() - started) / sizes.steps / sizes.batch)
