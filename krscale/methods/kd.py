"""Knowledge distillation: the student learns the teacher's softened distribution.

Source: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531.
"""

from __future__ import annotations

from torch import Tensor

from krscale.config.methods import KDSettings
from krscale.methods.base import LogitMethod
from krscale.methods.numerics import at_least_fp32, kl_divergence


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return `temperature^2 * KL(q || p)` for each sample, `[B]` fp32; 0 where they agree.

    `q` and `p` are the softmax of the teacher's and the student's logits over the temperature.
    Logits in fp64 give fp64.

    Args:
        student_logits: `[B, K]`.
        teacher_logits: `[B, K]`, up to an additive constant; gets no gradient.
        temperature: Temperature of both distributions.

    Example:
        At a high temperature it is half the mean squared difference of the centred logits (section
        2.1 of the paper):

        >>> teacher = torch.tensor([[1.0, -1.0, 0.0, 0.0]], dtype=torch.float64)
        >>> kd_loss(torch.zeros_like(teacher), teacher + 5.0, 1000.0).round(decimals=4)
        tensor([0.2500], dtype=torch.float64)
    """
    log_p = (at_least_fp32(student_logits) / temperature).log_softmax(dim=-1)
    log_q = (at_least_fp32(teacher_logits.detach()) / temperature).log_softmax(dim=-1)
    return temperature**2 * kl_divergence(log_q, log_p)


class KD(LogitMethod):
    """Cross-entropy with the labels, and `kd_loss` with the teacher's classifier."""

    settings_class = KDSettings
    term = "kd"
    takes_mixed_labels = True

    def distillation(
        self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor
    ) -> Tensor:
        """Return `kd_loss`."""
        return kd_loss(student_logits, teacher_logits, self.temperature)
