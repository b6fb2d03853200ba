"""Numerics shared by the losses: sufficient precision, and the KL divergence."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def at_least_fp32(values: Tensor) -> Tensor:
    """Return values in fp32; fp64 values stay in fp64."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a context without autocast, in which matrix products keep the tensor's precision."""
    if tensor.is_meta:  # torch has no autocast for meta tensors
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


def kl_divergence(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Return `KL(q || p)` over the last dimension; classes that `q` excludes contribute 0.

    Args:
        log_q: `[..., K]` log-probabilities; minus infinity for an excluded class.
        log_p: `[..., K]`.
    """
    excluded = log_q == -torch.inf
    ratio = log_q.masked_fill(excluded, 0.0) - log_p.masked_fill(excluded, 0.0)
    return (log_q.exp() * ratio).sum(dim=-1)
