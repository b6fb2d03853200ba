"""The KR objective: the recoded cross-entropy of every group, weighted and summed.

The entropy of the targets is subtracted from the value: it is 0 where every group of the student
gives the teacher's distribution, so that it measures the remaining gap. The gradient is that of the
cross-entropy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from krscale.knowledge.recoding import recode, with_gradient


def kr_loss(
    group_logits: Tensor,
    soft_targets: Tensor,
    weights: Tensor,
    temperature: float,
    sparsity: float | Tensor,
) -> Tensor:
    """Return `temperature^2 * sum_g weights_g * KL~(q_g, p_g)` for each sample, `[B]` fp32.

    `KL~` is the cross-entropy with the recoded gradient, minus the entropy of `q_g`. The square of
    the temperature keeps the scale of the gradient independent of the temperature.

    Args:
        group_logits: `[B, G, K]`, the student's logits for each group.
        soft_targets: `[B, G, K]`, the distributions of the teacher's groups; get no gradient.
        weights: `[G]`, the weight of each group.
        temperature: Temperature of the student's distributions, the same as of `soft_targets`.
        sparsity: Maximum share of each sign's gap to drop, in `[0, 1)`.

    Example:
        >>> teacher = torch.tensor([[[0.5, 0.25, 0.25]]])  # one sample, one group, three classes
        >>> weights, student = torch.ones(1), torch.zeros(1, 1, 3)
        >>> kr_loss(teacher.log(), teacher, weights, 1.0, 0.5).round(decimals=4).abs()
        tensor([0.])
        >>> dense, sparse = (kr_loss(student, teacher, weights, 1.0, share) for share in (0.0, 0.5))
        >>> dense == sparse  # the penalty changes the gradient alone
        tensor([True])
    """
    return kr_terms(group_logits, soft_targets, weights, temperature, sparsity)[0]


def kr_terms(
    group_logits: Tensor,
    soft_targets: Tensor,
    weights: Tensor,
    temperature: float,
    sparsity: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """Return `kr_loss`, `[B]` fp32, and the active classes of every group, `[B, G]` int64.

    The arguments are those of `kr_loss`. A class is active if it has a gradient.

    Example:
        >>> teacher = torch.tensor([[[0.45, 0.35, 0.1, 0.1]]])  # the student is 0.25 for each
        >>> student, weights = torch.zeros(1, 1, 4), torch.ones(1)
        >>> [kr_terms(student, teacher, weights, 1.0, share)[1].item() for share in (0.0, 0.4)]
        [4, 3]

        Of the gaps -0.2, -0.1, 0.15 and 0.15, the second was dropped.
    """
    with torch.no_grad():
        targets = soft_targets.float()
        log_probabilities = (group_logits.float() / temperature).log_softmax(dim=-1)
        recoded, active = recode(log_probabilities.exp() - targets, sparsity)
        # Takes half the time of xlogy on a CPU; 0 where a target is 0.
        logs = targets.clamp_min(torch.finfo(torch.float32).tiny).log()
        gaps = targets * (logs - log_probabilities)
        # A student may exclude a class (with a logit of -inf) that its teacher excludes, too.
        divergences = gaps.masked_fill_(targets == 0.0, 0.0).sum(dim=-1)
        value = temperature**2 * (divergences * weights).sum(dim=-1)
        slopes = recoded * (temperature * weights).unsqueeze(-1)
    return with_gradient(value, slopes, group_logits), active
