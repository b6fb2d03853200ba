"""Label smoothing: part of every label is spread over all classes; no teacher.

The control for every distillation method: soft targets without information on the classes.

Source: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, Rethinking the Inception Architecture for Computer
Vision, CVPR 2016, arXiv 1512.00567.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from krscale.config.methods import LabelSmoothingSettings
from krscale.knowledge.taps import TapOutputs
from krscale.methods.base import Batch, Method, MethodContext


class LabelSmoothing(Method):
    """Cross-entropy with `(1 - label_smoothing) * label + label_smoothing / K`."""

    settings_class = LabelSmoothingSettings
    needs_teacher = False

    def __init__(self, context: MethodContext, settings: LabelSmoothingSettings) -> None:
        super().__init__()
        self.label_smoothing = settings.label_smoothing

    def forward(self, student: TapOutputs, batch: Batch) -> dict[str, Tensor]:
        """Return the term `ce`."""
        loss = F.cross_entropy(
            student.logits.float(),
            batch.labels,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        return {"ce": loss}
