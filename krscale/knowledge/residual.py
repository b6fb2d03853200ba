"""Residual tracing: how far the student is from the teacher, by relative depth.

The residual that the paper says accumulates in the deeper layers (claim C1) is measured as a
divergence between the distributions that the two networks hold at the same relative depth.
"""

from __future__ import annotations

import torch
from torch import Tensor

from krscale.errors import KrscaleError
from krscale.knowledge.aggregation import student_tap


def residual_by_depth(
    teacher_logits: Tensor, student_logits: Tensor, temperature: float = 1.0
) -> dict[float, float]:
    """Return `{d / D: mean KL(teacher's tap d || student's tap at that depth)}` in nats.

    The student's tap is the one that a head of KR would sit on, `ceil(d * D_student / D)`; at depth
    1 both classifiers are compared.

    Args:
        teacher_logits: `[N, D, K]`, the teacher's logits at its taps, in depth order.
        student_logits: `[N, D_student, K]`, the student's logits for the same samples.
        temperature: Temperature of both distributions.

    Raises:
        KrscaleError: If the two are not of the same samples and classes.
    """
    num_taps, num_student_taps = teacher_logits.shape[1], student_logits.shape[1]
    if teacher_logits[:, 0].shape != student_logits[:, 0].shape:
        raise KrscaleError(
            f"teacher {tuple(teacher_logits.shape)} and student {tuple(student_logits.shape)} do "
            f"not have the same samples and classes"
        )
    taps = [student_tap(tap, num_taps, num_student_taps) - 1 for tap in range(1, num_taps + 1)]
    log_q = (teacher_logits.double() / temperature).log_softmax(dim=-1)
    log_p = (student_logits[:, taps].double() / temperature).log_softmax(dim=-1)
    divergence = (torch.special.xlogy(log_q.exp(), log_q.exp()) - log_q.exp() * log_p).sum(dim=-1)
    residuals = divergence.mean(dim=0).tolist()
    return {(tap + 1) / num_taps: residual for tap, residual in enumerate(residuals)}
