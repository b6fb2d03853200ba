"""Find the taps of networks that define none, once per experiment, by running them."""

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
"""Width of a student that is run to find taps: at width 1, many layers may output only zeros."""
_NUM_SEEDS = 8
"""Maximum number of seeds to try until a network's logits differ between two images."""


def with_found_taps(experiment: Experiment, task: Task) -> Experiment:
    """Return the experiment with the found taps of every network that defines none.

    If no method reads taps of students, students need none; the taps of those without any stay
    empty.

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
    """Return one line with the found taps for each network that had none."""
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
    """Find `taps` and `stage_ends` of a network that has none, by running it."""
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
    """Return a network and two images with different logits, reproducibly.

    With some initial weights, a narrow network returns zeros for every image, so that the flow
    through its blocks cannot be observed.
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
