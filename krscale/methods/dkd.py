"""Decoupled knowledge distillation: separate terms for the target class and the other classes.

Source: Zhao, Cui, Song, Qiu, Liang, Decoupled Knowledge Distillation, CVPR 2022, arXiv 2203.08679.
The authors warm the term up over the first 20 epochs; here it has its full weight throughout.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from krscale.config.methods import DKDSettings
from krscale.methods.base import LogitMethod, MethodContext
from krscale.methods.numerics import kl_divergence


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    target_weight: float,
    nontarget_weight: float,
) -> Tensor:
    """Return `temperature^2 * (target_weight * TCKD + nontarget_weight * NCKD)`, `[B]` fp32.

    TCKD is the KL divergence of the two-class distributions (label, not label). NCKD is that of the
    distributions over the other classes alone, each summing to 1. Both are 0 where student and
    teacher agree.

    Args:
        student_logits: `[B, K]`.
        teacher_logits: `[B, K]`, up to an additive constant; gets no gradient.
        labels: `[B]` int64.
        temperature: Temperature of all distributions.
        target_weight: Weight of TCKD, alpha in the paper.
        nontarget_weight: Weight of NCKD, beta in the paper.

    Example:
        >>> from krscale.methods.kd import kd_loss
        >>> student, teacher = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[2.0, 1.0, 0.0]])
        >>> others = 1.0 - float(teacher.softmax(dim=1)[0, 0])  # of the teacher's mass
        >>> decoupled = dkd_loss(student, teacher, torch.tensor([0]), 1.0, 1.0, others)
        >>> torch.allclose(decoupled, kd_loss(student, teacher, 1.0))  # KD = TCKD + others * NCKD
        True
    """
    student_binary, student_others = _decouple(student_logits.float() / temperature, labels)
    teacher = teacher_logits.detach().float() / temperature
    teacher_binary, teacher_others = _decouple(teacher, labels)
    target = kl_divergence(teacher_binary, student_binary)
    nontarget = kl_divergence(teacher_others, student_others)
    return temperature**2 * (target_weight * target + nontarget_weight * nontarget)


class DKD(LogitMethod):
    """Cross-entropy with the labels, and `dkd_loss` with the teacher's classifier.

    The target of an image without a label is the teacher's most likely class.
    """

    settings_class = DKDSettings
    term = "dkd"

    def __init__(self, context: MethodContext, settings: DKDSettings) -> None:
        super().__init__(context, settings)
        self.target_weight = settings.dkd_target_weight
        self.nontarget_weight = settings.dkd_nontarget_weight

    def distillation(
        self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor
    ) -> Tensor:
        """Return `dkd_loss`."""
        return dkd_loss(
            student_logits,
            teacher_logits,
            labels,
            self.temperature,
            self.target_weight,
            self.nontarget_weight,
        )


def _decouple(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of (label, not label) `[B, 2]` and of the other classes `[B, K]`.

    Among the others, the label's own entry is minus infinity. "Not label" is summed over the other
    classes, because `log(1 - p)` loses all precision when `p` rounds to 1.
    """
    is_label = F.one_hot(labels, logits.shape[-1]).bool()
    log_p = logits.log_softmax(dim=-1)
    others = logits.masked_fill(is_label, -torch.inf)
    log_label = log_p.gather(-1, labels.unsqueeze(-1))
    log_rest = log_p.masked_fill(is_label, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return torch.cat([log_label, log_rest], dim=-1), others.log_softmax(dim=-1)
