"""Taps of an experiment's networks that name none, found once by running them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from krscale.config import Experiment, ModelConfig, TeacherConfig, with_values
from krscale.errors import UserError
from krscale.knowledge.tap_search import evaluating, find_taps
from krscale.knowledge.taps import settle_layouts
from krscale.methods import reads_taps
from krscale.models import ZOO
from krscale.models.outputs import check_steady
from krscale.models.preprocessing import input_shape
from krscale.setup.methods import methods_of
from krscale.setup.network_builder import Task, builder, shapes_only, student_table, students_of

SEARCHED_WIDTH = 4
"""Of a student that is looked at by running it: at width 1 much of it may give zeros only."""
_NUM_SEEDS = 8
"""Initial weights that are tried, until a network tells two images apart."""


def with_found_taps(experiment: Experiment, task: Task) -> Experiment:
    """Return an experiment that lists the taps of every network that would name none.

    Students that no method of it reads at a tap may have none that can be found, and list none.

    Raises:
        UserError: If a network cannot be built, or nothing is found.
    """
    teacher, values = experiment.teacher, dict[str, Any]()
    optional = not any(map(reads_taps, methods_of(experiment)))
    found = _find_taps(teacher, task, "teacher", teacher.width)
    values |= {f"teacher.{name}": value for name, value in found.items()}
    students = experiment.ladder.students
    own = [
        _find_taps(config, task, student_table(config), config.width, optional=optional)
        for config in students
    ]
    if any(own):
        values["ladder.students"] = [
            config.model_dump() | found for config, found in zip(students, own, strict=True)
        ]
    if not students:
        student = experiment.student
        found = _find_taps(student, task, "student", SEARCHED_WIDTH, optional=optional)
        values |= {f"student.{name}": value for name, value in found.items()}
    return with_values(experiment, values, "taps that were found") if values else experiment


def describe_taps(before: Experiment, now: Experiment) -> tuple[str, ...]:
    """Return which taps were found, a line for each network that had none."""
    lines = []
    students = zip(students_of(before), students_of(now), strict=True)
    for old, new in ((before.teacher, now.teacher), *students):
        if old.taps != new.taps:
            where = "teacher" if isinstance(new, TeacherConfig) else student_table(new)
            lines.append(
                f"{where}.taps, found by running the network: {', '.join(new.taps)}; "
                f"{len(new.stage_ends)} stages"
            )
    return tuple(lines)


def _find_taps(
    config: ModelConfig, task: Task, where: str, width: int, *, optional: bool = False
) -> dict[str, Any]:
    """Return `taps` and `stage_ends` of a network that has none, found by running it."""
    if config.model in ZOO or config.taps:
        return {}
    if getattr(shapes_only(config, task, where, width), "tap_paths", None) is not None:
        return {}
    network, images = _responding(builder(config, task, where, fresh=True), width, task)
    with evaluating(network):
        check_steady(network, images, where)
    try:
        found = find_taps(network, images, lambda logits: logits)
        if optional and config.tap_layout == "auto":
            settle_layouts(network, found.paths, tuple(images.shape[1:]), where=where)
    except UserError as error:
        if optional:
            return {}
        raise UserError(f"{where}.taps: {error}") from None
    return {"taps": found.paths, "stage_ends": found.stage_ends}


def _responding(
    build: Callable[[int], nn.Module], width: int, task: Task
) -> tuple[nn.Module, Tensor]:
    """Return a network and two images with different logits, the same at every start.

    With some initial weights a narrow network gives zeros, whatever the image, and then nothing
    shows what passes through its blocks.
    """
    for seed in range(_NUM_SEEDS):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = build(width)
            images = torch.randn(2, *input_shape(network, task.image_shape))
        with evaluating(network):
            first, second = network(images)
        if not torch.allclose(first, second, rtol=1e-2, atol=0):
            break
    return network, images
