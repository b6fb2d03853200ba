"""The base of the methods that compare features: labels, KD, and one term of their own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from krscale.config.methods import KDSettings
from krscale.errors import KrscaleError
from krscale.knowledge.features import FeatureKind, Shapes
from krscale.knowledge.taps import TapOutputs
from krscale.methods.base import Method, MethodContext
from krscale.methods.batch import Batch, classes_of, label_cross_entropy, teacher_knowledge
from krscale.methods.kd import kd_loss


class FeatureMethod(Method):
    """Cross-entropy with the labels, KD with the teacher's classifier, and a term on features.

    In practice all of these methods are used with KD, so they include the KD term; `kd_weight = 0`
    turns it off. The weight of the term on features is its setting `TERM_weight`.

    Attributes:
        term: Name of the term on features.
        kind: The kind of teacher features it needs.
    """

    settings_class: ClassVar[type[KDSettings]]
    term: ClassVar[str]
    kind: ClassVar[FeatureKind]
    takes_unlabelled = True

    def __init_subclass__(cls) -> None:
        cls.feature_kinds = frozenset({cls.kind})

    def __init__(self, context: MethodContext, settings: KDSettings) -> None:
        super().__init__()
        self.ce_weight, self.temperature = settings.ce_weight, settings.temperature
        self.kd_weight = settings.kd_weight
        self.term_weight: float = getattr(settings, f"{self.term}_weight")

    @classmethod
    def check_shapes(cls, student: Shapes, teacher: Shapes) -> None:
        """Refuse networks whose features cannot be compared; the base class accepts all.

        Args:
            student: Shapes of the outputs of the student's stages.
            teacher: Shapes of the teacher's features of this kind.

        Raises:
            UserError: With both shapes.
        """

    @abstractmethod
    def compare(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], labels: Tensor
    ) -> Tensor:
        """Return the term before its weight, `[B]` fp32.

        Args:
            student: Output of each of the student's stages, `[B, ...]`.
            teacher: The teacher's features of this kind, fp32 without gradient.
            labels: `[B]` int64; for an image without a label, the teacher's most likely class.
        """

    def forward(self, student: TapOutputs, batch: Batch) -> dict[str, Tensor]:
        """Return the terms `ce`, `kd` and `term`."""
        logits = student.logits.float()
        teacher_logits = teacher_knowledge(batch)[:, -1]
        taught = kd_loss(logits, teacher_logits, self.temperature)
        features = teacher_features(batch, self.kind)
        classes = classes_of(batch.labels, teacher_logits)
        compared = self.compare(student.features, features, classes)
        return {
            "ce": self.ce_weight * label_cross_entropy(logits, batch.labels, batch.mixture),
            "kd": self.kd_weight * taught,
            self.term: self.term_weight * compared,
        }


def teacher_features(batch: Batch, kind: FeatureKind) -> list[Tensor]:
    """Return the teacher's features of a kind, fp32 without gradient.

    Raises:
        KrscaleError: If they are not in the batch.
    """
    if kind not in batch.teacher_features:
        raise KrscaleError(
            f"this method learns from the teacher's {kind} features, but the batch carries none; "
            "build the loader with their store"
        )
    return [feature.detach().float() for feature in batch.teacher_features[kind]]


def shapes_of(shapes: Mapping[FeatureKind, Shapes], kind: FeatureKind) -> Shapes:
    """Return the teacher's shapes of a kind.

    Raises:
        KrscaleError: If they are unknown.
    """
    if kind not in shapes:
        raise KrscaleError(f"the shapes of the teacher's {kind} features are not given")
    return shapes[kind]
