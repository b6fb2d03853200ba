"""Label smoothing: part of every label is spread over all classes, without a teacher.

It is the control for every distillation method: soft targets without information on the classes.

Source: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, Rethinking the Inception Architecture for Computer
Vision, CVPR 2016, arXiv 1512.00567.
"""

from __future__ import annotations

from torch import Tensor

from krscale.config.methods import LabelSmoothingSettings
from krscale.knowledge.taps import TapOutputs
from krscale.methods.base import Method, MethodContext
from krscale.methods.batch import Batch, Mixture, label_cross_entropy


def smoothed_cross_entropy(
    student_logits: Tensor,
    labels: Tensor,
    label_smoothing: float,
    mixture: Mixture | None = None,
) -> Tensor:
    """Return the cross-entropy with `(1 - label_smoothing) * label + label_smoothing / K`.

    `[B]` fp32, one value for each sample.

    Args:
        student_logits: `[B, K]`.
        labels: `[B]` int64.
        label_smoothing: Share of every label that is spread over all classes.
        mixture: `Batch.mixture`.

    Example:
        >>> sure = torch.tensor([[40.0, 0.0, 0.0, 0.0]])  # and right
        >>> smoothed_cross_entropy(sure, torch.tensor([0]), label_smoothing=0.0).abs()
        tensor([0.])
        >>> smoothed = smoothed_cross_entropy(sure, torch.tensor([0]), label_smoothing=0.1)
        >>> smoothed.round(decimals=4)  # being sure costs: 3 * 0.1 / 4 * 40
        tensor([3.])
    """
    return label_cross_entropy(student_logits, labels, mixture, label_smoothing)


class LabelSmoothing(Method):
    """`smoothed_cross_entropy` as the only term."""

    settings_class = LabelSmoothingSettings
    needs_teacher = False
    takes_mixed_labels = True

    def __init__(self, context: MethodContext, settings: LabelSmoothingSettings) -> None:
        super().__init__()
        self.label_smoothing = settings.label_smoothing

    def forward(self, student: TapOutputs, batch: Batch) -> dict[str, Tensor]:
        """Return the term `ce`."""
        loss = smoothed_cross_entropy(
            student.logits, batch.labels, self.label_smoothing, batch.mixture
        )
        return {"ce": loss}
