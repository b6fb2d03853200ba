"""The stages of teacher and student: what methods need of them, and whether the two fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from krscale.config import Experiment
from krscale.knowledge.features import (
    KINDS,
    FeatureKind,
    Shapes,
    feature_shapes,
    stage_paths,
    stage_shapes,
)
from krscale.methods import FeatureMethod, parse_method
from krscale.setup.sizes import Task, build_teacher


def methods_of(experiment: Experiment) -> tuple[str, ...]:
    """Return every method of an experiment, once."""
    return tuple(dict.fromkeys((*experiment.search.methods, experiment.distill.method)))


def needed_kinds(methods: Iterable[str]) -> list[FeatureKind]:
    """Return the kinds of features that methods learn from."""
    needed = {kind for name in methods for kind in parse_method(name)[0].feature_kinds}
    return [kind for kind in KINDS if kind in needed]


def teacher_stages(
    experiment: Experiment, task: Task, taps: Sequence[str]
) -> tuple[tuple[str, ...], Shapes]:
    """Return paths and shapes of the teacher's stages, from a network on meta tensors.

    Args:
        experiment: Names the teacher.
        task: What it must fit.
        taps: Its taps, resolved, without the classifier.
    """
    with torch.device("meta"):
        teacher = build_teacher(experiment, task)
    paths = stage_paths(teacher, taps)
    return paths, stage_shapes(teacher, paths, task.image_shape)


def check_stages(
    experiment: Experiment,
    task: Task,
    teacher_taps: Sequence[str],
    student: nn.Module,
    student_taps: Sequence[str],
) -> None:
    """Refuse methods that cannot compare the features of these two networks.

    Raises:
        UserError: Naming the method and both shapes.
    """
    methods = (parse_method(name)[0] for name in methods_of(experiment))
    compared = [method for method in methods if issubclass(method, FeatureMethod)]
    if compared:
        _, teacher = teacher_stages(experiment, task, teacher_taps)
        own = stage_shapes(student, stage_paths(student, student_taps), task.image_shape)
    for method in compared:
        method.check_shapes(own, feature_shapes(method.kind, teacher))
