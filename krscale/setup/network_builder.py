"""Build the networks that an experiment names, with their preprocessing and taps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from torch import nn

from krscale.config import Experiment, LadderStudent, ModelConfig, StudentConfig, TeacherConfig
from krscale.errors import UserError
from krscale.knowledge.taps import check_taps
from krscale.models import ZOO, build_model
from krscale.models.built_before import refuse_built_before
from krscale.models.capacity import meta_tensors
from krscale.models.preprocessing import input_shape, set_preprocessing
from krscale.models.probing import build_for_shapes, check_network
from krscale.setup.inputs import choose_preprocessing
from krscale.setup.layouts import declare_stages, settle_taps


class Task(Protocol):
    """What a network must fit: a `Dataset`, or the `Description` of one."""

    @property
    def num_classes(self) -> int:
        """Number of classes `K`."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)`."""

    @property
    def num_train(self) -> int:
        """Number of images in the training split."""


def build_teacher(experiment: Experiment, task: Task, *, fresh: bool = False) -> nn.Module:
    """Build the teacher's network, with the weights that its builder gives it.

    Args:
        experiment: The experiment that names the teacher.
        task: The data that it must fit.
        fresh: Whether to load no pretrained weights, because other weights will replace them.
    """
    return builder(experiment.teacher, task, "teacher", fresh=fresh)(experiment.teacher.width)


def build_student(
    experiment: Experiment, task: Task, width: int, *, fresh: bool = False
) -> nn.Module:
    """Build the student that an experiment trains, with the weights that its builder gives it.

    Args:
        experiment: The experiment that names the student.
        task: The data that it must fit.
        width: Its capacity dial.
        fresh: Whether to load no pretrained weights, because other weights will replace them.
    """
    config = experiment.any_student
    return builder(config, task, student_table(config), fresh=fresh)(width)


def student_models(experiment: Experiment) -> tuple[str, ...]:
    """Return the models of an experiment's students: zoo names, `package.module:callable`, ..."""
    return tuple(student.model for student in students_of(experiment))


def student_table(config: StudentConfig | LadderStudent) -> str:
    """Return the name of a student's config table for error messages."""
    return f"ladder.students.{config.name}" if isinstance(config, LadderStudent) else "student"


def builder(
    config: ModelConfig, task: Task, where: str, *, fresh: bool = False
) -> Callable[[int], nn.Module]:
    """Return a function that builds such a network, with its preprocessing, for a given width."""

    def build(width: int) -> nn.Module:
        network = build_model(
            config.model,
            num_classes=task.num_classes,
            in_channels=task.image_shape[0],
            width=width,
            options=config.options,
            output_key=config.output_key,
            fresh=fresh,
            where=where,
        )
        if config.model not in ZOO and _is_trained(config):
            refuse_built_before(network, config.model, where)
        chosen = choose_preprocessing(config, network, task.image_shape[0], where)
        set_preprocessing(network, chosen)
        if config.model in ZOO and config.tap_layout != "auto":
            raise UserError(
                f"{where}.tap_layout: {config.tap_layout!r} is set, but the taps of {config.model} "
                "are known; leave it out."
            )
        if config.stage_ends:
            declare_stages(network, config.taps, config.stage_ends)
        if config.model not in ZOO:
            settle_taps(network, config, input_shape(network, task.image_shape), where)
        return network

    return build


def shapes_only(config: ModelConfig, task: Task, where: str, width: int) -> nn.Module:
    """Return a network for reading shapes, on meta tensors if possible, after checking its logits.

    Raises:
        UserError: If it cannot be built, does not run on these images, or returns no logits.
    """
    build = partial(builder(config, task, where), width)
    if config.model in ZOO:
        with meta_tensors():
            return build()
    model = build_for_shapes(build, task.image_shape)
    trained_here = _is_trained(config)
    check_network(model, task.num_classes, task.image_shape, where, trained_here=trained_here)
    return model


def _is_trained(config: ModelConfig) -> bool:
    """Whether a network is trained here: all are, except a teacher that comes with weights."""
    return not (isinstance(config, TeacherConfig) and config.weights)


def resolve_taps(
    model: nn.Module, paths: tuple[str, ...], where: str
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the tap paths of a model and the last tap of each of its stages.

    Args:
        model: The network.
        paths: Tap paths that the experiment lists; empty if the network defines its own.
        where: The setting, for error messages.

    Raises:
        UserError: If a path does not exist.
    """
    own = getattr(model, "tap_paths", ())
    if paths and paths != own:
        check_taps(model, paths, where)
        return paths, tuple(range(1, len(paths) + 2))
    return tuple(own), tuple(getattr(model, "stage_ends", range(1, len(own) + 2)))


def students_of(experiment: Experiment) -> Sequence[StudentConfig | LadderStudent]:
    """Return the students of the ladder, or the one student whose width determines its sizes."""
    return experiment.ladder.students or (experiment.student,)
