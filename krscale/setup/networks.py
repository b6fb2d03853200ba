"""Teacher and student of an experiment, resolved once on meta tensors and passed on.

Nothing is allocated and nothing is trained: taps, stages, shapes and sizes follow from the
architectures alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from krscale.batch_norm import check_batch_norm
from krscale.config import (
    Experiment,
    LadderStudent,
    StudentConfig,
    with_values,
)
from krscale.config.training import BatchSizes
from krscale.knowledge.aggregation import split_taps
from krscale.knowledge.features import Shapes, feature_shapes, stage_paths, stage_shapes
from krscale.knowledge.layouts import zeros
from krscale.knowledge.tap_order import check_depth_order
from krscale.knowledge.where import positions_of, without_where
from krscale.methods import FeatureMethod, method_settings, parse_method
from krscale.models import ZOO
from krscale.models.capacity import count_flops, num_parameters
from krscale.models.preprocessing import (
    DEFAULT,
    Preprocessing,
    input_shape,
    preprocessing_of_network,
)
from krscale.own_norms import refuse_own_norms
from krscale.setup.found_taps import with_found_taps
from krscale.setup.inputs import is_chosen, may_differ
from krscale.setup.methods import methods_of
from krscale.setup.network_builder import (
    Task,
    build_student,
    resolve_taps,
    shapes_only,
    student_table,
    students_of,
)
from krscale.setup.zoo_facts import remembered


@dataclass(frozen=True)
class TeacherNetwork:
    """Properties that follow from the teacher's architecture.

    Attributes:
        taps: Module paths of its taps, the classifier excluded.
        stage_ends: For each stage the 1-based number of its last tap.
        stage_paths: Module paths of its stages.
        stage_shapes: Shape of the output of each stage for one image.
        num_parameters: Number of all its parameters.
        flops: FLOPs of one forward pass of one image, 2 per multiply-add.
        preprocessing: Conversion of the pixels of a view to its input.
        image_shape: `(C, H, W)` of its input.
    """

    taps: tuple[str, ...]
    stage_ends: tuple[int, ...]
    stage_paths: tuple[str, ...]
    stage_shapes: Shapes
    num_parameters: int
    flops: int
    preprocessing: Preprocessing = DEFAULT
    image_shape: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        teacher: nn.Module,
        taps: tuple[str, ...],
        stage_ends: tuple[int, ...],
        image_shape: tuple[int, int, int],
    ) -> TeacherNetwork:
        """Determine the properties of a teacher, which may be on meta tensors."""
        stages = stage_paths(teacher, taps)
        return cls(
            taps,
            stage_ends,
            stages,
            stage_shapes(teacher, stages, image_shape),
            num_parameters(teacher),
            count_flops(teacher, image_shape),
            preprocessing_of_network(teacher),
            tuple(image_shape),
        )

    @property
    def num_taps(self) -> int:
        """Number of taps `D`, the classifier included."""
        return len(self.taps) + 1


@dataclass(frozen=True)
class Networks:
    """The networks of an experiment for one task.

    Attributes:
        experiment: The experiment, which names teacher, student and methods.
        num_classes: Number of classes `K`.
        image_shape: `(C, H, W)`.
        num_train: Number of images in the training split.
        teacher: Properties that follow from the teacher's architecture.
    """

    experiment: Experiment
    num_classes: int
    image_shape: tuple[int, int, int]
    num_train: int
    teacher: TeacherNetwork

    @classmethod
    def resolve(cls, experiment: Experiment, task: Task) -> Networks:
        """Build the teacher once on meta tensors and determine its properties.

        The returned experiment lists the taps of networks that define none; these are found by
        running the networks.

        Raises:
            UserError: If the teacher cannot be built or trained, its taps do not exist, or none is
                found.
        """
        experiment = with_found_taps(experiment, task)
        teacher = shapes_only(experiment.teacher, task, "teacher", experiment.teacher.width)
        taps, stage_ends = resolve_taps(teacher, experiment.teacher.taps, "teacher.taps")
        shape = input_shape(teacher, task.image_shape)
        if not experiment.teacher.weights:  # the teacher will be trained
            # Full batches: `train.gradient_accumulation` applies to students only.
            batches = BatchSizes(task.num_train, experiment.train.global_batch_size)
            check_batch_norm(teacher, shape, batches, "teacher")
            if experiment.teacher.num_workers > 1:
                refuse_own_norms(teacher, "teacher")
        describe = partial(TeacherNetwork.of, teacher, taps, stage_ends, shape)
        return cls(
            experiment,
            task.num_classes,
            task.image_shape,
            task.num_train,
            remembered("teacher", experiment.teacher, task, experiment.teacher.width, describe),
        )

    def with_values(self, values: Mapping[str, Any], where: str) -> Networks:
        """Return the networks of the experiment with other values; see `of` for the teacher.

        Args:
            values: Values by dotted path of the setting.
            where: Where the values come from, for error messages.
        """
        return self.of(with_values(self.experiment, values, where))

    def of(self, experiment: Experiment) -> Networks:
        """Return the networks of a variant; resolve the teacher again only if it differs."""
        if experiment.teacher != self.experiment.teacher:
            return Networks.resolve(experiment, self)
        return replace(self, experiment=experiment)

    def build_student(self, width: int) -> nn.Module:
        """Build a student of the given width with fresh weights."""
        return build_student(self.experiment, self, width)

    def check(self) -> None:
        """Refuse taps, granularities and features that do not fit, before anything trains.

        Raises:
            UserError: If something does not fit; the message names the setting, or the method and
                both shapes.
        """
        self.check_granularity()
        experiment, teacher = self.experiment, self.teacher
        if experiment.teacher.model not in ZOO or experiment.teacher.taps:
            network = shapes_only(experiment.teacher, self, "teacher", experiment.teacher.width)
            images = zeros(network, teacher.image_shape)
            check_depth_order(network, teacher.taps, images, "teacher.taps")
        for student in students_of(experiment):
            self._check_student(student)

    def check_granularity(self) -> None:
        """Refuse a granularity that the teacher's taps do not allow; nothing is built for this.

        Raises:
            UserError: If it is out of range, or neither a number nor a level.
        """
        experiment, teacher = self.experiment, self.teacher
        if "granularity" in method_settings(experiment.distill.method):
            split_taps(experiment.distill.granularity, teacher.num_taps, teacher.stage_ends)

    def _check_student(self, config: StudentConfig | LadderStudent) -> None:
        experiment, teacher, where = self.experiment, self.teacher, student_table(config)
        width = config.width if isinstance(config, LadderStudent) else 1
        student = shapes_only(config, self, where, width)
        taps, _ = resolve_taps(student, config.taps, f"{where}.taps")
        shape = input_shape(student, self.image_shape)
        if config.model not in ZOO or config.taps:  # the zoo's own taps are in order
            check_depth_order(student, taps, zeros(student, shape), f"{where}.taps")
        methods = (parse_method(name)[0] for name in methods_of(experiment))
        compared = [method for method in methods if issubclass(method, FeatureMethod)]
        if compared:
            own = stage_shapes(student, stage_paths(student, taps), shape)
        for method in compared:
            method.check_shapes(own, feature_shapes(method.kind, teacher.stage_shapes))
        check_batch_norm(student, shape, experiment.train.batch_sizes(self.num_train), where)
        if experiment.train.most_workers > 1:
            refuse_own_norms(student, where)

    def compares_where(self, methods: Iterable[str]) -> bool:
        """Whether methods compare where stages are active, and the teacher has such stages."""
        if not self.experiment.distill.where_weight:
            return False
        shape = self.teacher.image_shape
        return any("where_weight" in method_settings(name) for name in methods) and any(
            positions_of(stage, shape) is not None for stage in self.teacher.stage_shapes
        )

    def describe_where(self) -> tuple[str, ...]:
        """Return one line for each stage whose active positions are not compared."""
        experiment, teacher = self.experiment, self.teacher
        used = any("where_weight" in method_settings(name) for name in methods_of(experiment))
        if not used or not experiment.distill.where_weight:
            return ()
        networks = [("teacher", teacher.stage_paths, teacher.stage_shapes, teacher.image_shape)]
        for config in students_of(experiment):
            where, width = student_table(config), getattr(config, "width", 1)
            student = shapes_only(config, self, where, width)
            taps, _ = resolve_taps(student, config.taps, f"{where}.taps")
            stages, shape = stage_paths(student, taps), input_shape(student, self.image_shape)
            networks.append((where, stages, stage_shapes(student, stages, shape), tuple(shape)))
        return tuple(
            f"{where}: {line}"
            for where, paths, shapes, image_shape in networks
            for line in without_where(paths, shapes, image_shape)
        )

    def describe_inputs(self) -> tuple[str, ...]:
        """Return one line on the preprocessing of each network for which there is a choice.

        Networks that are trained here without such settings use the default.
        """
        lines = []
        found = self.teacher.preprocessing
        if is_chosen(self.experiment.teacher) or found != DEFAULT:
            lines.append(f"teacher takes images as {found.describe()}")
        for config in students_of(self.experiment):
            found = student_preprocessing(config, self)
            if is_chosen(config) or found != DEFAULT:
                lines.append(f"{student_table(config)} takes images as {found.describe()}")
        return tuple(lines)


def teacher_preprocessing(experiment: Experiment, task: Task) -> Preprocessing:
    """Return the teacher's preprocessing; build the teacher only if necessary."""
    if not may_differ(experiment.teacher):
        return DEFAULT
    teacher = experiment.teacher
    return preprocessing_of_network(shapes_only(teacher, task, "teacher", teacher.width))


def student_preprocessing(config: StudentConfig | LadderStudent, task: Task) -> Preprocessing:
    """Return a student's preprocessing; build the student only if necessary."""
    if not may_differ(config):
        return DEFAULT
    width = config.width if isinstance(config, LadderStudent) else 1
    return preprocessing_of_network(shapes_only(config, task, student_table(config), width))
