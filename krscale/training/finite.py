"""Checks for NaN and infinity after an epoch, whose last step may break the weights unnoticed.

The loss of a step is computed before its update, so no loss reflects the last update.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from krscale.errors import NonFiniteError
from krscale.models.outputs import find_logits
from krscale.parallel import sum_over_workers

ADVICE = "A smaller learning rate or weight usually helps."


def require_finite(metrics: Mapping[str, float], epoch: int) -> None:
    """Refuse metrics, the same on all workers, if one is NaN or infinite.

    Raises:
        NonFiniteError: With the name of the metric.
    """
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise NonFiniteError(f"{name} is not finite after epoch {epoch}. {ADVICE}")


@torch.no_grad()
def require_finite_outputs(model: nn.Module, images: Tensor, epoch: int) -> None:
    """Refuse a network that gives NaN or infinity for its images `[B, C, H, W]` on any worker.

    Raises:
        NonFiniteError: On every worker.
    """
    was_training = model.training
    broken = find_logits(model.eval()(images)).isfinite().logical_not().any()
    model.train(was_training)
    if sum_over_workers(broken.float()).item() > 0:
        raise NonFiniteError(
            f"what was trained gives NaN or infinity after epoch {epoch}. {ADVICE}"
        )
