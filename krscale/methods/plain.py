"""Plain training: the cross-entropy with the labels, no teacher. The baseline of every figure."""

from __future__ import annotations

from torch import Tensor

from krscale.config.methods import PlainSettings
from krscale.knowledge.taps import TapOutputs
from krscale.methods.base import Method, MethodContext
from krscale.methods.batch import Batch, label_cross_entropy


class Plain(Method):
    """Cross-entropy with the labels at weight 1; another weight would only scale the step.

    It uses labelled images only: learning from labels that a teacher gives would be distillation.
    """

    settings_class = PlainSettings
    needs_teacher = False
    takes_mixed_labels = True

    def __init__(self, context: MethodContext, settings: PlainSettings) -> None:
        super().__init__()

    def forward(self, student: TapOutputs, batch: Batch) -> dict[str, Tensor]:
        """Return the term `ce`."""
        return {"ce": label_cross_entropy(student.logits, batch.labels, batch.mixture)}
