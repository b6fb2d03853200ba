"""Teacher and student of an experiment, resolved once on meta tensors and handed down.

Nothing is allocated and nothing is trained: taps, stages, shapes and sizes follow from the
architectures alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from krscale.config import (
    Experiment,
    LadderStudent,
    ModelConfig,
    StudentConfig,
    TeacherConfig,
    with_values,
)
from krscale.errors import UserError
from krscale.knowledge.aggregation import split_taps
from krscale.knowledge.features import Shapes, feature_shapes, stage_paths, stage_shapes
from krscale.knowledge.taps import check_taps
from krscale.methods import FeatureMethod, method_settings, parse_method
from krscale.models import ZOO, build_model
from krscale.models.capacity import count_flops, num_parameters
from krscale.models.preprocessing import (
    DEFAULT,
    Preprocessing,
    input_shape,
    preprocessing_of_network,
    set_preprocessing,
)
from krscale.models.probing import build_for_shapes, check_network
from krscale.parallel import check_batch_norm
from krscale.setup.inputs import choose_preprocessing, may_differ
from krscale.setup.layouts import settle_taps
from krscale.setup.methods import methods_of


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
        """Images of the training split."""


@dataclass(frozen=True)
class TeacherNetwork:
    """What follows from the teacher's architecture.

    Attributes:
        taps: Module paths of its taps, the classifier excluded.
        stage_ends: For each stage the 1-based number of its last tap.
        stage_paths: Module paths of its stages.
        stage_shapes: Shape of the output of each stage for one image.
        num_parameters: All of its parameters.
        flops: Of one forward of one image, 2 per multiply-add.
        preprocessing: From the pixels of a view to its input.
    """

    taps: tuple[str, ...]
    stage_ends: tuple[int, ...]
    stage_paths: tuple[str, ...]
    stage_shapes: Shapes
    num_parameters: int
    flops: int
    preprocessing: Preprocessing = DEFAULT

    @property
    def num_taps(self) -> int:
        """`D`, the classifier included."""
        return len(self.taps) + 1


@dataclass(frozen=True)
class Networks:
    """The networks of an experiment for one task.

    Attributes:
        experiment: Names teacher, student and methods.
        num_classes: `K`.
        image_shape: `(C, H, W)`.
        num_train: Images of the training split.
        teacher: What follows from the teacher's architecture.
    """

    experiment: Experiment
    num_classes: int
    image_shape: tuple[int, int, int]
    num_train: int
    teacher: TeacherNetwork

    @classmethod
    def resolve(cls, experiment: Experiment, task: Task) -> Networks:
        """Build the teacher once on meta tensors and read off what follows from it.

        Raises:
            UserError: If the teacher cannot be built or trained, or its taps do not exist.
        """
        teacher = shapes_only(experiment.teacher, task, "teacher", experiment.teacher.width)
        taps, stage_ends = resolve_taps(teacher, experiment.teacher.taps, "teacher.taps")
        stages = stage_paths(teacher, taps)
        shape = input_shape(teacher, task.image_shape)
        if not experiment.teacher.weights:  # it will be trained
            batch = (task.num_train, experiment.train.global_batch_size)
            check_batch_norm(teacher, shape, batch, "teacher")
        return cls(
            experiment,
            task.num_classes,
            task.image_shape,
            task.num_train,
            TeacherNetwork(
                taps,
                stage_ends,
                stages,
                stage_shapes(teacher, stages, shape),
                num_parameters(teacher),
                count_flops(teacher, shape),
                preprocessing_of_network(teacher),
            ),
        )

    def with_values(self, values: Mapping[str, Any], where: str) -> Networks:
        """Return the networks of the experiment with other values, the teacher resolved as it is.

        Args:
            values: Dotted path of the experiment -> value.
            where: Where the values come from, for the message of an error.
        """
        return self.of(with_values(self.experiment, values, where))

    def of(self, experiment: Experiment) -> Networks:
        """Return the networks of a variant; the teacher is resolved again only where it differs."""
        if experiment.teacher != self.experiment.teacher:
            return Networks.resolve(experiment, self)
        return replace(self, experiment=experiment)

    def build_student(self, width: int) -> nn.Module:
        """Build a student of the given width with fresh weights."""
        return build_student(self.experiment, self, width)

    def check(self) -> None:
        """Refuse taps, granularities and features that do not fit, before anything trains.

        Raises:
            UserError: Naming the setting, or the method and both shapes.
        """
        experiment, teacher = self.experiment, self.teacher
        if "granularity" in method_settings(experiment.distill.method):
            split_taps(experiment.distill.granularity, teacher.num_taps, teacher.stage_ends)
        for student in experiment.ladder.students or (experiment.student,):
            self._check_student(student)

    def _check_student(self, config: StudentConfig | LadderStudent) -> None:
        experiment, teacher, where = self.experiment, self.teacher, student_table(config)
        width = config.width if isinstance(config, LadderStudent) else 1
        student = shapes_only(config, self, where, width)
        taps, _ = resolve_taps(student, config.taps, f"{where}.taps")
        shape = input_shape(student, self.image_shape)
        methods = (parse_method(name)[0] for name in methods_of(experiment))
        compared = [method for method in methods if issubclass(method, FeatureMethod)]
        if compared:
            own = stage_shapes(student, stage_paths(student, taps), shape)
        for method in compared:
            method.check_shapes(own, feature_shapes(method.kind, teacher.stage_shapes))
        batch = (self.num_train, experiment.train.global_batch_size)
        check_batch_norm(student, shape, batch, where)

    def describe_inputs(self) -> tuple[str, ...]:
        """Return how the images of each network are prepared, a line each, where there is a choice.

        Networks that are trained here with nothing said of it take the data as it is.
        """
        lines = []
        if may_differ(self.experiment.teacher):
            lines.append(f"teacher takes images as {self.teacher.preprocessing.describe()}")
        for config in self.experiment.ladder.students or (self.experiment.student,):
            if may_differ(config):
                where = student_table(config)
                width = config.width if isinstance(config, LadderStudent) else 1
                said = preprocessing_of_network(shapes_only(config, self, where, width))
                lines.append(f"{where} takes images as {said.describe()}")
        return tuple(lines)


def build_teacher(experiment: Experiment, task: Task) -> nn.Module:
    """Build the teacher's network with fresh weights."""
    return builder(experiment.teacher, task, "teacher")(experiment.teacher.width)


def build_student(
    experiment: Experiment, task: Task, width: int, *, fresh: bool = False
) -> nn.Module:
    """Build the student that an experiment trains, with the weights that it is built with.

    Args:
        experiment: Names the student.
        task: What it must fit.
        width: Its capacity dial.
        fresh: Load no pretrained weights, because others take their place.
    """
    config = experiment.any_student
    return builder(config, task, student_table(config), fresh=fresh)(width)


def student_models(experiment: Experiment) -> tuple[str, ...]:
    """Return what an experiment's students are called: zoo names, `package.module:callable`, ..."""
    return tuple(s.model for s in experiment.ladder.students or (experiment.student,))


def student_table(config: StudentConfig | LadderStudent) -> str:
    """Return how errors call the table of a student."""
    return f"ladder.students.{config.name}" if isinstance(config, LadderStudent) else "student"


def builder(
    config: ModelConfig, task: Task, where: str, *, fresh: bool = False
) -> Callable[[int], nn.Module]:
    """Return a function from a width to a network of this kind, which knows its preprocessing."""

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
        chosen = choose_preprocessing(config, network, task.image_shape[0], where)
        set_preprocessing(network, chosen)
        if config.model in ZOO and config.tap_layout != "auto":
            raise UserError(
                f"{where}.tap_layout: {config.tap_layout!r} is set, but the taps of {config.model} "
                "are known; leave it out."
            )
        if config.model not in ZOO:
            settle_taps(network, config, input_shape(network, task.image_shape), where)
        return network

    return build


def teacher_preprocessing(experiment: Experiment, task: Task) -> Preprocessing:
    """Return how the teacher's images are prepared; it is built only where it must be asked."""
    if not may_differ(experiment.teacher):
        return DEFAULT
    teacher = experiment.teacher
    return preprocessing_of_network(shapes_only(teacher, task, "teacher", teacher.width))


def shapes_only(config: ModelConfig, task: Task, where: str, width: int) -> nn.Module:
    """Return a network to read shapes off, on meta tensors if possible, proven to give logits.

    Raises:
        UserError: If it cannot be built, does not run on these images, or gives no logits.
    """
    build = partial(builder(config, task, where), width)
    if config.model in ZOO:
        with torch.device("meta"):
            return build()
    model = build_for_shapes(build, task.image_shape)
    trained_here = not (isinstance(config, TeacherConfig) and config.weights)
    check_network(model, task.num_classes, task.image_shape, where, trained_here=trained_here)
    return model


def resolve_taps(
    model: nn.Module, paths: tuple[str, ...], where: str
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the tap paths of a model and the last tap of each of its stages.

    Raises:
        UserError: If a path does not exist, or the model names no taps and the config neither.
    """
    own = getattr(model, "tap_paths", None)
    if paths and paths != own:
        check_taps(model, paths, where)
        return paths, tuple(range(1, len(paths) + 2))
    if own is None:
        raise UserError(
            f"{where}: this model names no taps of its own (`tap_paths`); list the module paths of "
            f"its blocks in depth order, e.g. {_some_paths(model)}. "
            "`krscale taps MODEL` lists and proposes them."
        )
    return tuple(own), tuple(getattr(model, "stage_ends", range(1, len(own) + 2)))


def _some_paths(model: nn.Module) -> str:
    paths = [name for name, child in model.named_modules() if name and len(list(child.children()))]
    return json.dumps(paths[:3] or [name for name, _ in model.named_children()][:3])
