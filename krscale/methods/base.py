"""The base of all methods: a small module that turns student outputs and a batch into loss terms.

A method has no access to the teacher, only to its stored outputs for the batch
(`Batch.tap_logits`). It may own trainable parts (heads, projections); these exist only in training
and are never exported.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from krscale.config.methods import DistillationSettings, MethodSettings
from krscale.knowledge.aggregation import Depths
from krscale.knowledge.features import FeatureKind, Shapes
from krscale.knowledge.taps import TapOutputs
from krscale.methods.batch import Batch, classes_of, label_cross_entropy, teacher_knowledge


@dataclass(frozen=True)
class MethodContext:
    """What a method is built from, in addition to its settings.

    Attributes:
        num_classes: `K`.
        num_teacher_taps: `D`, the classifier included.
        stage_ends: For each stage of the teacher the 1-based number of its last tap.
        information_gain: `[D]`, the information gain of each of the teacher's taps.
        student_shapes: Shape of each of the student's tap features for one image, without the
            classifier.
        student_layers: The student's own conv and linear layers by tap, classifier included.
        teacher_histograms: `[D, bins]`, distribution of the teacher's weights by tap, or None.
        teacher_layer_sizes: `[D]`, number of those weights by tap.
        student_stage_shapes: Shape of the output of each of the student's stages.
        teacher_shapes: Shapes of the teacher's stored features, by kind.
        student_stage_ends: For each stage of the student the 1-based number of its last tap; empty
            if unknown.
        student_image_shape: `(C, H, W)` as the student takes it; empty if unknown.
    """

    num_classes: int
    num_teacher_taps: int
    stage_ends: tuple[int, ...]
    information_gain: Tensor
    student_shapes: Shapes
    student_layers: tuple[tuple[nn.Module, ...], ...]
    teacher_histograms: Tensor | None
    teacher_layer_sizes: Tensor
    student_stage_shapes: Shapes = ()
    teacher_shapes: Mapping[FeatureKind, Shapes] = field(default_factory=dict)
    student_stage_ends: tuple[int, ...] = ()
    student_image_shape: tuple[int, ...] = ()

    @property
    def depths(self) -> Depths:
        """Taps and stages of both networks."""
        num_student_taps = len(self.student_shapes) + 1
        return Depths(self.stage_ends, num_student_taps, self.student_stage_ends)

    @classmethod
    def without_teacher(cls, num_classes: int) -> MethodContext:
        """Return the context of a training without a teacher."""
        none = torch.zeros(0)
        return cls(num_classes, 0, (), none, (), (), None, none)


class Reads(NamedTuple):
    """The blocks at which a student is read in training.

    Attributes:
        taps: Module paths, for `TapOutputs.features`.
        stages: Module paths, for `TapOutputs.stages`.
    """

    taps: Sequence[str] = ()
    stages: Sequence[str] = ()


class Method(nn.Module, ABC):
    """Base of all methods; subclasses are registered in `krscale.methods.METHODS`.

    The constructor of a registered method takes `(context: MethodContext, settings)`, where
    `settings` is an instance of its `settings_class`.
    """

    settings_class: ClassVar[type[MethodSettings]]
    """The method's settings: each one's meaning, default, and allowed values."""
    needs_teacher: bool = True
    """Whether batches must carry `tap_logits`."""
    feature_kinds: frozenset[FeatureKind] = frozenset()
    """Teacher features that batches must carry. The student is then normally read at its stages
    instead of its taps (`reads`)."""

    takes_mixed_labels: bool = False
    """Whether the method is correct for images mixed from two. Its cross-entropy must be
    `label_cross_entropy` of the batch's mixture, and nothing else in it may need *the* class of a
    sample. For all other methods, mixed views are refused."""

    takes_unlabelled: bool = False
    """Whether the method is correct for images with the label `UNLABELLED`. Its cross-entropy must
    be `label_cross_entropy`, which is 0 for them, and any other part that needs a class must take
    it from `classes_of`. Methods without a teacher get labelled images only; other methods that do
    not take unlabelled images are refused with `data.unlabelled`."""

    compares_samples: bool = False
    """Whether the loss of a sample depends on the other samples of its batch. With several workers,
    such a method computes the loss over one worker's share at a time. Its result then depends on
    the number of workers, so it is refused where that may change (`train.max_workers`)."""

    @abstractmethod
    def forward(self, student: TapOutputs, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted loss terms `{name: [B]}` in fp32; their sum is the loss.

        Args:
            student: Logits `[B, K]` and tap features of the student.
            batch: Labels and the teacher's knowledge of the same samples.
        """

    def reads(self, taps: Sequence[str], stages: Sequence[str]) -> Reads:
        """Return the blocks at which the student is to be read.

        Args:
            taps: Module paths of the student's taps.
            stages: Module paths of the blocks at which its stages end.
        """
        if not self.needs_teacher:
            return Reads()
        return Reads(stages if self.feature_kinds else taps)

    def begin_epoch(self, progress: float) -> None:
        """Update what changes over the training; called before every epoch.

        Args:
            progress: 0 in the first epoch, 1 in the last.
        """

    def begin_step(self, step: int) -> None:
        """Update what changes from step to step; called before every step of a training.

        All parts of a batch, and all workers, take the same step.

        Args:
            step: Number of the step in the training, from 0.
        """

    @property
    def reads_blocks(self) -> bool:
        """Whether this step needs what `reads` names; without it, the logits are enough."""
        return True

    def untaught_weights(self) -> Sequence[nn.Parameter]:
        """Return weights of the method that this step does not teach; the optimiser skips them."""
        return ()

    def diagnostics(self) -> dict[str, Tensor]:
        """Return scalars of the last forward to log; without gradient or host synchronisation."""
        return {}


class LogitMethod(Method):
    """A method with the labels' cross-entropy and one term that reads only the logits.

    Such a term is *posterior knowledge*: it needs only the teacher's last tap, and can be combined
    with KR.

    The weight of the term is its setting `TERM_weight`; in a combination with KR, `posterior.TERM`.

    Attributes:
        term: Name of the distillation term.
    """

    settings_class: ClassVar[type[DistillationSettings]]
    term: ClassVar[str]
    takes_unlabelled = True

    def __init__(self, context: MethodContext, settings: DistillationSettings) -> None:
        super().__init__()
        self.ce_weight, self.temperature = settings.ce_weight, settings.temperature
        self.term_weight: float = getattr(settings, f"{self.term}_weight")

    def reads(self, taps: Sequence[str], stages: Sequence[str]) -> Reads:
        """Return no blocks, so that students without taps, or that skip blocks, can learn."""
        return Reads()

    @abstractmethod
    def distillation(
        self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor
    ) -> Tensor:
        """Return the distillation term before its weight, `[B]` fp32.

        Args:
            student_logits: `[B, K]` fp32.
            teacher_logits: `[B, K]` fp32, up to an additive constant, without gradient.
            labels: `[B]` int64; for an image without a label, the teacher's most likely class.
        """

    def forward(self, student: TapOutputs, batch: Batch) -> dict[str, Tensor]:
        """Return the terms `ce` and `term`."""
        logits = student.logits.float()
        teacher_logits = teacher_knowledge(batch)[:, -1]
        classes = classes_of(batch.labels, teacher_logits)
        distilled = self.distillation(logits, teacher_logits, classes)
        return {
            "ce": self.ce_weight * label_cross_entropy(logits, batch.labels, batch.mixture),
            self.term: self.term_weight * distilled,
        }
