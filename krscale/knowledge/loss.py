"""The KR objective: the recoded cross-entropy of every group, weighted and summed.

What is returned is less by the entropy of the targets: 0 where every group of the student gives the
distribution of the teacher's, so that the value shows how far the student has come. The gradient is
that of the cross-entropy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from krscale.knowledge.recoding import recoded_terms


def kr_loss(
    group_logits: Tensor,
    soft_targets: Tensor,
    weights: Tensor,
    temperature: float,
    sparsity: float | Tensor,
) -> Tensor:
    """Return `temperature^2 * sum_g weights_g * KL~(q_g, p_g)` for each sample, `[B]` fp32.

    `KL~` is the cross-entropy with the recoded gradient, less the entropy of `q_g`. The square of
    the temperature keeps the gradient's size when the temperature changes.

    Args:
        group_logits: `[B, G, K]`, the student's logits for each group.
        soft_targets: `[B, G, K]`, the distributions of the teacher's groups; get no gradient.
        weights: `[G]`, how much each group teaches.
        temperature: Temperature of the student's distributions, the one of `soft_targets`.
        sparsity: Share of each sign's gap to drop at most, in `[0, 1)`.
    """
    return kr_terms(group_logits, soft_targets, weights, temperature, sparsity)[0]


def kr_terms(
    group_logits: Tensor,
    soft_targets: Tensor,
    weights: Tensor,
    temperature: float,
    sparsity: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """Return `kr_loss`, `[B]`, and the active classes of every group, `[B, G]` int64."""
    losses, active = recoded_terms(group_logits, soft_targets, temperature, sparsity)
    targets = soft_targets.detach().float()
    divergences = losses + torch.special.xlogy(targets, targets).sum(dim=-1)
    return temperature**2 * (divergences * weights).sum(dim=-1), active
