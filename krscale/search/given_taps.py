"""Taps of networks that were given and name none: found by running them, as `krscale.KRLoss` does.

An experiment has to name them, so that every start and every worker reads the same blocks.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from krscale.config import (
    Experiment,
    LadderStudent,
    StudentConfig,
    TeacherConfig,
    with_values,
)
from krscale.errors import UserError
from krscale.models import ZOO
from krscale.models.blocks import proposed_taps
from krscale.models.preprocessing import input_shape
from krscale.setup.networks import Task, builder, shapes_only, student_table

_WIDTH = 8
"""Of a student whose width is still to be found; its blocks are called alike at all widths."""
_SEED = 0


def with_found_taps(experiment: Experiment, sections: Collection[str], task: Task) -> Experiment:
    """Return the experiment with the taps of networks that name none.

    Args:
        experiment: All settings.
        sections: Those whose networks were given: `teacher`, `student` or `ladder`.
        task: What the networks must fit.

    Raises:
        UserError: If a network does not fit the data, or no tap is found in it.
    """
    values: dict[str, Any] = {}
    if "teacher" in sections:
        values["teacher.taps"] = _taps(experiment.teacher, task, experiment.teacher.width)
    if "student" in sections:
        values["student.taps"] = _taps(experiment.student, task, _WIDTH)
    if "ladder" in sections:
        values["ladder.students"] = tuple(
            {**student.model_dump(), "taps": _taps(student, task, student.width)}
            for student in experiment.ladder.students
        )
    return with_values(experiment, values, "search")


def _taps(
    config: TeacherConfig | StudentConfig | LadderStudent, task: Task, width: int
) -> tuple[str, ...]:
    """Return the paths that a section should name: none where they are known without."""
    if config.taps or config.model in ZOO:
        return config.taps
    where = "teacher" if isinstance(config, TeacherConfig) else student_table(config)
    shapes_only(config, task, where, width)  # which refuses what does not run
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)  # the same taps at every start
        network = builder(config, task, where)(width)
    if hasattr(network, "tap_paths"):
        return ()
    try:
        return proposed_taps(network, input_shape(network, task.image_shape))
    except UserError as error:
        named = f"settings={{'{where}.taps': [...]}}" if "." not in where else "its own `tap_paths`"
        raise UserError(f"{where}: {error} ({named})") from None
