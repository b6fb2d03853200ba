"""Checks that a training can change its network, since it would otherwise fail silently."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from krscale.errors import NoGradientError

_WEIGHTS = (
    "Are all weights of the loss 0 (ce_weight, kr_weight, ...), or does what the network returns "
    "not depend on its weights?"
)


def require_trainable(network: nn.Module) -> None:
    """Refuse a network that has weights of which none is trainable.

    Raises:
        NoGradientError: With the number of weights.

    Example:
        >>> require_trainable(nn.Linear(2, 3).requires_grad_(False))
        Traceback (most recent call last):
        krscale.errors.NoGradientError: none of the 2 weights of this network can be trained: ...
    """
    weights = list(network.parameters())
    if weights and not any(weight.requires_grad for weight in weights):
        raise NoGradientError(
            f"none of the {len(weights)} weights of this network can be trained: requires_grad is "
            "False for all of them."
        )


def require_dependence(loss: Tensor) -> None:
    """Refuse a loss (a scalar) that depends on no weight.

    Raises:
        NoGradientError: Instead of torch's own error.
    """
    if not loss.requires_grad:
        raise NoGradientError(f"the loss depends on no weight of this network. {_WEIGHTS}")


def has_gradient(network: nn.Module) -> Tensor:
    """Return whether any weight has a nonzero gradient (a scalar), without synchronising."""
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    if not gradients:
        return torch.tensor(False)
    return torch.stack([gradient.any() for gradient in gradients]).any()


def require_gradient(*, moved: bool) -> None:
    """Refuse a training whose first step had no gradient.

    Args:
        moved: The result of `has_gradient`, of any worker.

    Raises:
        NoGradientError: On all workers, as gradients are the same on all.
    """
    if not moved:
        raise NoGradientError(
            f"in the first step the gradient of every weight of this network is 0. {_WEIGHTS}"
        )
