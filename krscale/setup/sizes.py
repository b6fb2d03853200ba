"""Resolve the ladder's capacities, shares of the teacher's parameters, to widths and sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from torch import nn

from krscale.config import LadderStudent, StudentConfig, is_share, parse_capacity
from krscale.errors import UserError
from krscale.models import ZOO
from krscale.models.capacity import (
    count_flops,
    nearest_width,
    num_parameters,
    on_meta,
    sizes_by_width,
)
from krscale.models.preprocessing import input_shape
from krscale.setup.network_builder import builder, student_table
from krscale.setup.networks import Networks
from krscale.setup.zoo_facts import remembered

MAX_ROUNDING = 2.0
"""Maximum factor by which `student.width_multiple` may make a student larger or smaller."""


@dataclass(frozen=True)
class StudentSize:
    """One student size of the ladder.

    Attributes:
        capacity: The share of the teacher's parameters as the user wrote it, e.g. `"1/16"`; or the
            name of a student of `[[ladder.students]]`.
        width: The multiple of `student.width_multiple` that comes closest to it.
        num_parameters: Number of parameters of the student without heads.
        flops: FLOPs of one forward pass of one image, 2 per multiply-add.
    """

    capacity: str
    width: int
    num_parameters: int
    flops: int


def ladder_sizes(networks: Networks) -> tuple[StudentSize, ...]:
    """Resolve every capacity of the ladder, smallest first.

    Raises:
        UserError: If two capacities lead to the same width, or `student.width_multiple` is too
            coarse for one.
    """
    experiment = networks.experiment
    if experiment.ladder.students:
        own = (_own_size(networks, student) for student in experiment.ladder.students)
        return tuple(sorted(own, key=lambda size: size.num_parameters))
    sizes = _resolve(networks, experiment.ladder.capacities)
    for size in sizes:
        _require_near(networks, size)
    return sizes


def find_size(networks: Networks) -> StudentSize:
    """Resolve `distill.capacity`.

    Raises:
        UserError: If `student.width_multiple` is too coarse for it.
    """
    size = nearest_size(networks)
    _require_near(networks, size)
    return size


def nearest_size(networks: Networks) -> StudentSize:
    """Resolve `distill.capacity`, however far off `student.width_multiple` makes it."""
    if (student := networks.experiment.own_student) is not None:
        return _own_size(networks, student)
    return _resolve(networks, (networks.experiment.distill.capacity,))[0]


def rounding(networks: Networks, size: StudentSize) -> float:
    """Return the factor by which `student.width_multiple` changes a size, at least 1."""
    if networks.experiment.student.width_multiple == 1 or not is_share(size.capacity):
        return 1.0
    ratio = size.num_parameters / _free(networks, size).num_parameters
    return max(ratio, 1 / ratio)


def _resolve(networks: Networks, capacities: Iterable[str]) -> tuple[StudentSize, ...]:
    experiment, teacher_parameters = networks.experiment, networks.teacher.num_parameters
    config, at_width = experiment.any_student, sizes_by_width(networks.build_student)
    multiple = experiment.student.width_multiple

    def size_at(width: int) -> int:
        return remembered("parameters", config, networks, width, partial(at_width, width))

    sizes: dict[int, StudentSize] = {}
    _require_dial(networks)
    for capacity in sorted(capacities, key=parse_capacity):
        width = nearest_width(size_at, parse_capacity(capacity) * teacher_parameters, multiple)
        if width in sizes:
            among = (
                f", of multiples of student.width_multiple = {multiple}," if multiple > 1 else ""
            )
            raise UserError(
                f"ladder.capacities: {sizes[width].capacity} and {capacity} of the teacher's "
                f"{teacher_parameters:,} parameters both come closest{among} to width {width} of "
                f"{experiment.student.model!r}; leave one out, or take a larger teacher."
            )
        sizes[width] = _measured(capacity, width, config, networks)
    return tuple(sizes.values())


def _own_size(networks: Networks, student: LadderStudent) -> StudentSize:
    """Return the size of a student that the user defined."""
    return _measured(student.name, student.width, student, networks)


def _measured(
    capacity: str, width: int, config: LadderStudent | StudentConfig, networks: Networks
) -> StudentSize:
    """Return the size of a student."""
    build = builder(config, networks, student_table(config))
    measure = partial(_measure, build, width, networks.image_shape)
    return StudentSize(capacity, width, *remembered("size", config, networks, width, measure))


def _measure(
    build: Callable[[int], nn.Module], width: int, image_shape: tuple[int, int, int]
) -> tuple[int, int]:
    """Return parameters and FLOPs; build with values only if meta tensors are not enough."""
    student = on_meta(build, width)
    try:
        flops = count_flops(student, input_shape(student, image_shape))
    except Exception:  # noqa: BLE001 - it looks at values, or the real student says it better
        student = build(width)
        flops = count_flops(student, input_shape(student, image_shape))
    return num_parameters(student), flops


def _require_dial(networks: Networks) -> None:
    """Refuse a student that has the same size at every width: it cannot have the ladder's sizes."""
    student = networks.experiment.student
    if student.model in ZOO:
        return
    small, large = (num_parameters(on_meta(networks.build_student, width)) for width in (1, 256))
    if small == large:
        raise UserError(
            f"student.model: {student.model!r} has {small:,} parameters at every width; it ignores "
            "its capacity dial, so it cannot have the sizes of a ladder. Give it an argument "
            "`width` that makes it larger, or list students one by one in [[ladder.students]]."
        )


def _free(networks: Networks, size: StudentSize) -> StudentSize:
    """Return the size without a width multiple."""
    free = networks.with_values({"student.width_multiple": 1}, "student")
    return _resolve(free, (size.capacity,))[0]


def _require_near(networks: Networks, size: StudentSize) -> None:
    """Refuse a multiple so coarse that the size would differ too much from the requested one."""
    if rounding(networks, size) > MAX_ROUNDING:
        free, multiple = _free(networks, size), networks.experiment.student.width_multiple
        raise UserError(
            f"student.width_multiple: {multiple} is too coarse for capacity "
            f"{size.capacity}: width {size.width} has "
            f"{size.num_parameters / free.num_parameters:.1f} times the parameters of width "
            f"{free.width}, which comes closest; at most {MAX_ROUNDING:g} times are allowed. Take "
            f"a smaller multiple, or leave the capacity out."
        )
