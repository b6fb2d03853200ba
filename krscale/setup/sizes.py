"""The sizes of the ladder: capacities as shares of the teacher, resolved to widths of the student.

Sizes are found on meta tensors: nothing is allocated and nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from krscale.config import Experiment, ModelConfig, parse_capacity, with_values
from krscale.errors import UserError
from krscale.models import build_model
from krscale.models.capacity import count_flops, find_width, num_parameters

MAX_ROUNDING = 2.0
"""How many times larger `student.width_multiple` may make a student, or smaller."""


class Task(Protocol):
    """What a network must fit: a `Dataset`, or the `Description` of one."""

    @property
    def num_classes(self) -> int:
        """Number of classes `K`."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)`."""


@dataclass(frozen=True)
class StudentSize:
    """One student size of the ladder.

    Attributes:
        capacity: The share of the teacher's parameters as the user wrote it, e.g. `"1/16"`.
        width: The dial that comes closest to it, of the multiples of `student.width_multiple`.
        num_parameters: Of the student without heads.
        flops: Of one forward of one image, 2 per multiply-add.
    """

    capacity: str
    width: int
    num_parameters: int
    flops: int


def build_teacher(experiment: Experiment, task: Task) -> nn.Module:
    """Build the teacher's network with fresh weights."""
    return _builder(experiment.teacher, task, "teacher")(experiment.teacher.width)


def build_student(experiment: Experiment, task: Task, width: int) -> nn.Module:
    """Build a student of the given width with fresh weights."""
    return _builder(experiment.student, task, "student")(width)


def ladder_sizes(experiment: Experiment, task: Task) -> tuple[StudentSize, ...]:
    """Resolve every capacity of the ladder, smallest first.

    Raises:
        UserError: If two capacities end at the same width, or `student.width_multiple` is too
            coarse for one.
    """
    sizes = _resolve(experiment, task, experiment.ladder.capacities)
    for size in sizes:
        _require_near(experiment, task, size)
    return sizes


def find_size(experiment: Experiment, task: Task) -> StudentSize:
    """Resolve `distill.capacity`.

    Raises:
        UserError: If `student.width_multiple` is too coarse for it.
    """
    size = nearest_size(experiment, task)
    _require_near(experiment, task, size)
    return size


def nearest_size(experiment: Experiment, task: Task) -> StudentSize:
    """Resolve `distill.capacity`, however far `student.width_multiple` takes it from there."""
    return _resolve(experiment, task, (experiment.distill.capacity,))[0]


def rounding(experiment: Experiment, task: Task, size: StudentSize) -> float:
    """Return how many times larger or smaller `student.width_multiple` makes a size; at least 1."""
    if experiment.student.width_multiple == 1:
        return 1.0
    ratio = size.num_parameters / _free(experiment, task, size).num_parameters
    return max(ratio, 1 / ratio)


def _resolve(
    experiment: Experiment, task: Task, capacities: Iterable[str]
) -> tuple[StudentSize, ...]:
    with torch.device("meta"):
        teacher_parameters = num_parameters(build_teacher(experiment, task))
    build = _builder(experiment.student, task, "student")
    multiple = experiment.student.width_multiple
    sizes: dict[int, StudentSize] = {}
    for capacity in sorted(capacities, key=parse_capacity):
        width = find_width(build, parse_capacity(capacity) * teacher_parameters, multiple)
        if width in sizes:
            among = (
                f", of multiples of student.width_multiple = {multiple}," if multiple > 1 else ""
            )
            raise UserError(
                f"ladder.capacities: {sizes[width].capacity} and {capacity} of the teacher's "
                f"{teacher_parameters:,} parameters both come closest{among} to width {width} of "
                f"{experiment.student.model!r}; leave one out, or take a larger teacher."
            )
        with torch.device("meta"):
            student = build(width)
        flops = count_flops(student, task.image_shape)
        sizes[width] = StudentSize(capacity, width, num_parameters(student), flops)
    return tuple(sizes.values())


def _free(experiment: Experiment, task: Task, size: StudentSize) -> StudentSize:
    """Return the size as it would be without a multiple."""
    free = {"student.width_multiple": 1}
    return _resolve(with_values(experiment, free, "student"), task, (size.capacity,))[0]


def _require_near(experiment: Experiment, task: Task, size: StudentSize) -> None:
    """Refuse a multiple so coarse that the size would be another size than was asked for."""
    if rounding(experiment, task, size) > MAX_ROUNDING:
        free = _free(experiment, task, size)
        raise UserError(
            f"student.width_multiple: {experiment.student.width_multiple} is too coarse for "
            f"capacity {size.capacity}: width {size.width} has "
            f"{size.num_parameters / free.num_parameters:.1f} times the parameters of width "
            f"{free.width}, which comes closest; at most {MAX_ROUNDING:g} times are allowed. Take "
            f"a smaller multiple, or leave the capacity out."
        )


def _builder(config: ModelConfig, task: Task, where: str) -> Callable[[int], nn.Module]:
    def build(width: int) -> nn.Module:
        return build_model(
            config.model,
            num_classes=task.num_classes,
            in_channels=task.image_shape[0],
            width=width,
            options=config.options,
            where=where,
        )

    return build
