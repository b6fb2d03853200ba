"""Estimate on paper where a search spends time, bytes and money, for `docs/scaling.md`.

Nothing is measured here. Measured figures come from `benchmarks/results/`, networks and rows of
stores from krscale itself, and everything else is in `Assumed`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from krscale.config import load
from krscale.knowledge.features import feature_shapes
from krscale.models.capacity import count_flops, num_parameters, on_meta
from krscale.setup.network_builder import build_teacher
from krscale.setup.networks import Networks
from krscale.setup.sizes import ladder_sizes
from krscale.store import WhereLayout
from krscale.store.layout import Layout
from parts.measuring import ROOT

JOB = ROOT / "jobs" / "imagenet_resnet.toml"
NUM_CLASSES, NUM_IMAGES = 1_000, 1_281_167
RESNET50 = {"parameters": 25_557_032, "flops": 8.18e9, "activations": 11.1e6, "norms": 53}
"""ResNet-50 at 224 pixels, as published; 2 FLOPs per multiply-add."""
RESNET50_TAPS = 16
"""15 blocks before the last, and the classifier."""
GIGA = 1e9


@dataclass(frozen=True)
class Assumed:
    """Assumptions that were not measured here.

    Attributes:
        gpu_tflops: Dense bf16 peak of one GPU, from the data sheet of an H100 SXM.
        gpu_memory_gb_s: What its memory moves a second, likewise.
        compute_share: Of the peak that convolutions reach.
        memory_share: Of the memory's rate that is reached.
        forward_passes: How often each activation (2 bytes) is read or written in a forward.
        training_passes: The same in a step.
        gpus_per_node: GPUs of a machine.
        node_memory_gb: Memory of a machine.
        storage_gb_s: What the shared storage reads or writes a second, for all machines together.
        node_link_gb_s: What a machine receives or sends a second.
        gpu_link_gb_s: What a GPU exchanges a second with those of its machine.
        exchange_us: Least time of one exchange, within a machine and between machines.
        decoded_per_thread: Photographs of 500 x 400 pixels that one thread decodes a second.
        dollars_per_gpu_hour: Price of a GPU with its share of the machine.
    """

    gpu_tflops: float = 989.0
    gpu_memory_gb_s: float = 3350.0
    compute_share: float = 0.5
    memory_share: float = 0.6
    forward_passes: float = 7.0
    training_passes: float = 20.0
    gpus_per_node: int = 8
    node_memory_gb: float = 1000.0
    storage_gb_s: float = 2.0
    node_link_gb_s: float = 12.5
    gpu_link_gb_s: float = 200.0
    exchange_us: tuple[float, float] = (25.0, 60.0)
    decoded_per_thread: float = 100.0
    dollars_per_gpu_hour: float = 3.0

    def image_seconds(self, network: Size, *, training: bool) -> tuple[float, str]:
        """Return the GPU's seconds for an image, and what bounds them.

        Args:
            network: The network that runs.
            training: Whether forward, backward and the optimiser's step run, or only a forward.
        """
        passes = self.training_passes if training else self.forward_passes
        flops = network.flops * (3 if training else 1)
        bounds = {
            "arithmetic": flops / (self.gpu_tflops * 1e12 * self.compute_share),
            "memory": 2 * passes * network.activations
            / (self.gpu_memory_gb_s * GIGA * self.memory_share),
        }  # fmt: skip
        bound = max(bounds, key=bounds.__getitem__)
        return bounds[bound], bound


class Size(NamedTuple):
    """Size of a network.

    Attributes:
        parameters: Number of all parameters.
        flops: Of a forward of one image, 2 per multiply-add.
        activations: Number of values that its convolutions output for one image.
        norms: Number of batch norms.
    """

    parameters: float
    flops: float
    activations: float
    norms: int

    def scaled(self, share: float) -> Size:
        """Return a network with a share of the parameters, by its width."""
        return Size(
            self.parameters * share, self.flops * share, self.activations * share**0.5, self.norms
        )


class Measured(NamedTuple):
    """What this repository has measured.

    Attributes:
        kr_over_plain: A step of KR with the store over a plain one, on a GPU, the worst of the
            students.
        part_ms: Least time of a part of a step (`train.gradient_accumulation`): kernels' starts.
        gather_gb_s: Pixels that one thread gathers a second.
        driver_ms: The driver's CPU time for a trial: ask, Ray, reports, end.
        journal_bytes: Bytes of a trial in the journal.
        epochs_share: Share of a whole trial's epochs that run, with the default early stopping.
        bits: Bits in which the store keeps a class.
    """

    kr_over_plain: float
    part_ms: float
    gather_gb_s: float
    driver_ms: float
    journal_bytes: float
    epochs_share: float
    bits: int

    @classmethod
    def of(
        cls, step: Mapping[str, Any], search: Mapping[str, Any], gpu: Mapping[str, Any]
    ) -> Measured:
        """Take the figures from `step.json`, `search.json` and `gpu.json`."""
        found = search["simulated"]
        trials = found["num_trials"]
        busy = found["workers_busy"] * found["num_workers"] * found["wall_seconds"]
        return cls(
            max(pair["kr_store_over_plain"] for pair in gpu["cost"]),
            min(row["us"] for name, row in gpu["against_paper"].items() if "student" in name)
            * gpu["batch"]
            / 1e3,
            step["loader"]["samples_per_second"]["bare_gather"] * 3 * 32 * 32 / GIGA,
            1e3 * sum(found["driver_seconds"].values()) / trials,
            1e6 * found["journal_megabytes"] / trials,
            busy / (trials * found["trial_seconds"]),
            step["store"]["bits"],
        )


@dataclass(frozen=True)
class Task:
    """A data set, a teacher and a ladder.

    Attributes:
        name: Name in the table.
        side: Pixels of an image's side.
        num_train: Training images.
        num_views: Views of each.
        num_epochs: Epochs of a student.
        teacher_epochs: Epochs of the teacher; 0 if it is given trained.
        batch: Images of a step.
        num_parts: Parts in which a step is computed.
        num_taps: Taps of the teacher, including the classifier.
        where_bytes: Bytes of a row of the store of positions.
        teacher: Its size.
        students: Sizes of the ladder, smallest first.
        checkpoint_seconds: How often a trial may keep a checkpoint.
    """

    name: str
    side: int
    num_train: int
    num_views: int
    num_epochs: int
    teacher_epochs: int
    batch: int
    num_parts: int
    num_taps: int
    where_bytes: int
    teacher: Size
    students: tuple[Size, ...]
    checkpoint_seconds: float

    @property
    def data_bytes(self) -> float:
        """Bytes of the training images as they are mapped."""
        return self.num_train * 3.0 * self.side**2

    def layout(self, bits: int) -> Layout:
        """Return the layout of the store of distributions."""
        return Layout(self.num_taps, NUM_CLASSES, NUM_CLASSES, 1.0, bits)

    def row_bytes(self, bits: int) -> int:
        """Bytes of one view of one image in the stores: distributions and positions."""
        return self.layout(bits).bytes_per_row + self.where_bytes

    def store_bytes(self, bits: int) -> float:
        """Bytes of all views of all images."""
        return float(self.num_train * self.num_views * self.row_bytes(bits))


@dataclass(frozen=True)
class ImageNet:
    """Properties of a job's data that networks need."""

    num_train: int
    image_shape: tuple[int, int, int]
    num_classes: int = NUM_CLASSES


def small_images() -> Task:
    """Return the task of `jobs/imagenet_resnet.toml`, with the networks that krscale builds."""
    experiment = load(JOB, [])
    side = int(tomllib.loads(JOB.read_text(encoding="utf-8"))["data"]["files"]["image_size"])
    num_train = round(NUM_IMAGES * (1.0 - experiment.data.test_fraction))
    task = ImageNet(num_train, (3, side, side))
    networks = Networks.resolve(experiment, task)
    shapes = feature_shapes("where", networks.teacher.stage_shapes)
    teacher = on_meta(lambda width: build_teacher(experiment, task), experiment.teacher.width)
    sizes = [on_meta(networks.build_student, size.width) for size in ladder_sizes(networks)]
    return Task(
        name=f"`jobs/imagenet_resnet.toml`, {side} pixels",
        side=side,
        num_train=num_train,
        num_views=experiment.views.num_views,
        num_epochs=experiment.train.num_epochs,
        teacher_epochs=experiment.teacher.num_epochs,
        batch=experiment.train.global_batch_size,
        num_parts=experiment.train.gradient_accumulation,
        num_taps=networks.teacher.num_taps,
        where_bytes=WhereLayout(tuple((rows, columns) for rows, columns in shapes)).bytes_per_row,
        teacher=size_of(teacher, task.image_shape),
        students=tuple(size_of(network, task.image_shape) for network in sizes),
        checkpoint_seconds=experiment.search.checkpoint_seconds,
    )


def size_of(network: nn.Module, image_shape: tuple[int, int, int]) -> Size:
    """Return the size of a network on meta tensors.

    Args:
        network: Convolutions, batch norms and a classifier.
        image_shape: `(C, H, W)`.
    """
    counts = []

    def count(module: nn.Module, inputs: object, output: Tensor) -> None:
        counts.append(output.numel())

    handles = [
        module.register_forward_hook(count)
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    network.eval()(torch.empty(1, *image_shape, device="meta"))
    for handle in handles:
        handle.remove()
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    return Size(num_parameters(network), count_flops(network, image_shape), sum(counts), norms)


def large_images(small: Task) -> Task:
    """Return the same task at 224 pixels, with ResNet-50 as a teacher that is given trained.

    Students have the same shares of the teacher's parameters.
    """
    teacher = Size(**RESNET50)  # type: ignore[arg-type]
    shares = [student.parameters / small.teacher.parameters for student in small.students]
    return replace(
        small,
        name="ResNet-50, 224 pixels",
        side=224,
        teacher_epochs=0,
        num_taps=RESNET50_TAPS,
        teacher=teacher,
        students=tuple(teacher.scaled(share) for share in shares),
    )
