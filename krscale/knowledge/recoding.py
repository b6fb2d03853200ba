"""The sparse recoding penalty: a distillation gradient that keeps only the largest gaps.

The gap `delta = p - q` between what the student and the teacher say sums to zero over the classes.
Among its positive entries, and among its negative ones, the smallest that together hold at most
the share `sparsity` of that sign's mass are dropped, and the kept ones are scaled up so that the
sign keeps its mass. The result is sparse, as strong as before, and still sums to zero.
"""

from __future__ import annotations

import torch
from torch import Tensor


def recode_gap(gap: Tensor, sparsity: float) -> Tensor:
    """Return the recoded gap, of the shape of `gap`, in fp32.

    Equal entries share one fate, so the result does not depend on the order of the classes.

    Args:
        gap: `[..., K]`, differences of two distributions over `K` classes.
        sparsity: Share of each sign's mass to drop at most, in `[0, 1)`; 0 changes nothing.

    Shape:
        `[..., K] -> [..., K]`, one sort whatever the number of classes.
    """
    gap = gap.float()
    if sparsity == 0.0:
        return gap
    positive, negative = gap.clamp_min(0.0), gap.clamp_max(0.0)
    positive_mass = positive.sum(dim=-1, keepdim=True)
    negative_mass = negative.sum(dim=-1, keepdim=True)
    lowest, highest = _thresholds(
        gap, (1.0 - sparsity) * negative_mass, (1.0 - sparsity) * positive_mass
    )
    kept_positive = torch.where(gap >= highest, positive, 0.0)
    kept_negative = torch.where(gap <= lowest, negative, 0.0)
    tiny = torch.finfo(torch.float32).tiny
    positive_scale = positive_mass / kept_positive.sum(dim=-1, keepdim=True).clamp_min(tiny)
    negative_scale = negative_mass / kept_negative.sum(dim=-1, keepdim=True).clamp_max(-tiny)
    return kept_positive * positive_scale + kept_negative * negative_scale


def _thresholds(
    gap: Tensor, negative_share: Tensor, positive_share: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the mildest kept entry of each sign, `[..., 1]`: largest negative, smallest positive.

    An entry is kept when the entries of its sign that are more extreme hold less than the share
    that must survive. Sorting the signed gap once serves both signs: the prefix sum before an
    entry is what the negative entries below it hold, the suffix sum after it what the positive
    entries above it hold. The most extreme entry of a sign is always kept, as nothing exceeds it.
    """
    ranked = gap.sort(dim=-1).values
    prefix = ranked.cumsum(dim=-1)
    below = prefix - ranked
    above = prefix[..., -1:] - prefix
    kept_negative = (ranked < 0.0) & (below > negative_share)
    kept_positive = (ranked > 0.0) & (above < positive_share)
    infinity = float("inf")
    lowest = torch.where(kept_negative, ranked, -infinity).amax(dim=-1, keepdim=True)
    highest = torch.where(kept_positive, ranked, infinity).amin(dim=-1, keepdim=True)
    return lowest, highest


def active_classes(gap: Tensor, sparsity: float) -> Tensor:
    """Return how many entries of each gap survive recoding, `[...]` int64.

    Args:
        gap: `[..., K]`, differences of two distributions over `K` classes.
        sparsity: Share of each sign's mass to drop at most, in `[0, 1)`.
    """
    return (recode_gap(gap, sparsity) != 0.0).sum(dim=-1)


def recoded_cross_entropy(
    student_logits: Tensor, soft_targets: Tensor, temperature: float, sparsity: float
) -> Tensor:
    """Return the cross-entropy of student and targets, `[...]`, whose gradient is recoded.

    The value is `-sum_k q_k log p_k` with `p = softmax(student_logits / temperature)`; the
    gradient to the logits is `recode_gap(p - q) / temperature`, which for `sparsity = 0` is the
    true gradient. The targets get no gradient. Computed in fp32 whatever the inputs.

    Args:
        student_logits: `[..., K]`.
        soft_targets: `[..., K]` probabilities.
        temperature: Temperature of the student's distribution.
        sparsity: Share of each sign's mass to drop at most, in `[0, 1)`.
    """
    return recoded_terms(student_logits, soft_targets, temperature, sparsity)[0]


def recoded_terms(
    student_logits: Tensor, soft_targets: Tensor, temperature: float, sparsity: float
) -> tuple[Tensor, Tensor]:
    """Return `recoded_cross_entropy` and the number of active classes, both `[...]`.

    One pass for both, so that logging the active classes does not cost a second sort.
    """
    scaled = student_logits.float() / temperature
    with torch.no_grad():
        targets = soft_targets.float()
        log_probabilities = scaled.log_softmax(dim=-1)
        value = -(targets * log_probabilities).sum(dim=-1)
        recoded = recode_gap(log_probabilities.exp() - targets, sparsity)
        active = (recoded != 0.0).sum(dim=-1)
    # A function that is linear in the logits has the wanted gradient exactly; its own value is
    # taken off again, which leaves the cross-entropy's.
    linear = (recoded * scaled).sum(dim=-1)
    return value + (linear - linear.detach()), active
