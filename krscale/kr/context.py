"""The context that `KRLoss` builds its method from: what it measured of its two networks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from krscale.config.methods import KRSettings
from krscale.knowledge.measuring import TeacherKnowledge
from krscale.knowledge.parameters import layers_by_tap, weight_histograms
from krscale.knowledge.where import cells_of
from krscale.methods import MethodContext
from krscale.models.tapped import TappedNetwork


@dataclass(frozen=True)
class Tap:
    """One of the teacher's taps: its information gain, and the accuracy of its probe.

    Attributes:
        path: Module path of the tap; empty for the classifier.
        information_gain: 0 for guessing by class frequency, 1 for always right with full
            confidence.
        accuracy: Accuracy of the tap's probe on held-out images.
    """

    path: str
    information_gain: float
    accuracy: float


def context_of(
    teacher: TappedNetwork,
    student: TappedNetwork,
    knowledge: TeacherKnowledge,
    settings: KRSettings,
    image_shape: tuple[int, ...],
) -> MethodContext:
    """Return the context of a teacher and a student, from which a method is built.

    Args:
        teacher: The teacher, read at its taps.
        student: The student, read at its taps.
        knowledge: Information gain and probe accuracy of each of the teacher's taps.
        settings: KR's settings, which determine what is needed of the teacher.
        image_shape: `(C, H, W)`.
    """
    cells = tuple(cells_of(shape, image_shape) for shape in teacher.stage_shapes)
    layers = layers_by_tap(teacher.network, teacher.paths)
    histograms = None
    if settings.parameter_weight > 0.0:  # needs a second copy of the teacher's weights in memory
        with torch.no_grad():
            histograms = weight_histograms(layers).cpu()
    sizes = [float(sum(_numel(layer) for layer in of_tap)) for of_tap in layers]
    return MethodContext(
        num_classes=student.num_classes,
        num_teacher_taps=len(teacher.paths) + 1,
        stage_ends=teacher.stage_ends,
        information_gain=knowledge.information_gain,
        student_shapes=student.shapes,
        student_layers=layers_by_tap(student.network, student.paths),
        teacher_histograms=histograms,
        teacher_layer_sizes=torch.tensor(sizes, device="cpu"),
        student_stage_shapes=student.stage_shapes,
        teacher_shapes={"where": cells},
        student_stage_ends=student.stage_ends,
        student_image_shape=image_shape,
    )


def _numel(layer: nn.Module) -> int:
    weight = layer.weight
    return weight.numel() if isinstance(weight, Tensor) else 0
