"""The sparse recoding penalty: a distillation gradient that keeps only the largest gaps.

The gap `delta = p - q` between the student's and the teacher's distribution sums to zero over the
classes. Among its positive entries, and among its negative ones, the smallest entries are dropped
that together hold at most the share `sparsity` of that sign's mass. The kept entries of each sign
are scaled so that both signs have the same mass, and all together so that the gap keeps its
Euclidean norm. The result is sparse, moves the logits as far as before, and still sums to zero.
"""

from __future__ import annotations

import torch
from torch import Tensor


def recode_gap(gap: Tensor, sparsity: float) -> Tensor:
    """Return the recoded gap, with the shape of `gap`, in fp32.

    Entries of equal value are all kept or all dropped, so the result does not depend on the order
    of the classes.

    Args:
        gap: `[..., K]`, differences of two distributions over `K` classes; each sums to zero.
        sparsity: Maximum share of each sign's mass to drop, in `[0, 1)`; 0 changes nothing.

    Shape:
        `[..., K] -> [..., K]`, with one sort for any number of classes.

    Example:
        >>> gap = torch.tensor([0.5, 0.1, -0.4, -0.2])
        >>> recoded = recode_gap(gap, 0.4)  # drops at most 0.24 of each sign
        >>> recoded.nonzero().flatten(), recoded.sum()
        (tensor([0, 2]), tensor(0.))
        >>> torch.allclose(recoded.norm(), gap.norm())
        True
    """
    return recode(gap, sparsity)[0]


def with_gradient(value: Tensor, slopes: Tensor, logits: Tensor) -> Tensor:
    """Return `value`, whose gradient to `logits` is `slopes`.

    A linear function of the logits has exactly the required gradient; its own value is subtracted
    again.

    Args:
        value: `[...]` without gradient.
        slopes: `[..., K]` or `[..., G, K]` without gradient; dimensions that `value` lacks are
            summed over.
        logits: Logits of the same shape as `slopes`.

    Example:
        >>> logits = torch.zeros(2, 3, requires_grad=True)
        >>> value = with_gradient(torch.tensor([5.0, 7.0]), torch.ones(2, 3), logits)
        >>> value.tolist(), torch.autograd.grad(value.sum(), logits)[0].tolist()
        ([5.0, 7.0], [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    """
    # An excluded class has a logit of -inf and a slope of 0, and their product is NaN.
    linear = (slopes * logits).nansum(dim=tuple(range(value.ndim, slopes.ndim)))
    return value + (linear - linear.detach())


def recode(gap: Tensor, sparsity: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return `recode_gap` and the number of kept entries of each gap, `[...]` int64: one sort.

    A sparsity that changes during training must be a scalar tensor on the device, so that neither
    recompilation nor synchronisation is needed. Neither result has a gradient.

    Both signs are computed together, the negative one as the positive entries of `-gap`: on a GPU,
    a step of a small student takes as long as the host needs to launch its kernels.

    Args:
        gap: `[..., K]`, differences of two distributions over `K` classes.
        sparsity: Maximum share of each sign's mass to drop, in `[0, 1)`.

    Example:
        >>> gap = torch.tensor([0.5, 0.1, -0.3, -0.3])
        >>> [recode(gap, sparsity)[1].item() for sparsity in (0.0, 0.6)]  # equals stay together
        [4, 3]
    """
    gap = gap.detach().float()
    if not isinstance(sparsity, Tensor) and sparsity == 0.0:
        return gap, gap.count_nonzero(dim=-1)
    signs = torch.stack((gap, -gap))  # [2, ..., K]
    kept = signs >= _thresholds(_ascending(gap), 1.0 - sparsity)
    survivors = signs * kept  # torch.where is slow on a CPU if the mask is irregular
    tiny = torch.finfo(torch.float32).tiny
    shares = survivors / survivors.sum(dim=-1, keepdim=True).clamp_min(tiny)
    balanced = shares[0] - shares[1]
    norm = torch.linalg.vector_norm(balanced, dim=-1, keepdim=True).clamp_min(tiny)
    recoded = balanced * (torch.linalg.vector_norm(gap, dim=-1, keepdim=True) / norm)
    return recoded, kept.sum(dim=(0, -1))


def _thresholds(ranked: Tensor, share: float | Tensor) -> Tensor:
    """Return the smallest kept entry of `gap` and of `-gap`, `[2, ..., 1]`; infinite if none.

    An entry is kept if the positive entries above it hold less than the share to be kept. The
    largest entry is always kept, as none exceeds it. Entries that are not positive are never kept,
    as all of the mass is above them.

    Args:
        ranked: `[..., K]`, a gap in ascending order.
        share: Share of each sign's mass to be kept.
    """
    signs = torch.stack((ranked, -ranked.flip(-1)))
    prefix = signs.clamp_min(0.0).cumsum(dim=-1)
    mass = prefix[..., -1:]
    return torch.where(mass - prefix < share * mass, signs, float("inf")).amin(dim=-1, keepdim=True)


def _ascending(gap: Tensor) -> Tensor:
    """Return the entries in ascending order along the last dimension."""
    if gap.device.type == "cpu" and not torch.compiler.is_compiling():
        # NumPy sorts rows with vector instructions: at 100 classes it is 18 times as fast as torch
        # on a CPU, where the sort would otherwise dominate the whole loss.
        ranked = gap.detach().clone(memory_format=torch.contiguous_format)
        ranked.numpy().sort(axis=-1)
        return ranked
    return gap.sort(dim=-1).values
