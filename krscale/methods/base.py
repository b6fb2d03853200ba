"""What a method is: a small module that turns student outputs and a batch into loss terms.

A method never sees the teacher, only what the teacher *said* about the batch (`Batch.tap_logits`).
It may own trainable parts (heads, projections); they live in training only and are never exported.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from krscale.knowledge.taps import TapOutputs


@dataclass(frozen=True)
class Batch:
    """One worker's share of a global batch, on the device.

    Attributes:
        images: `[B, C, H, W]` fp32, normalised, the view already applied.
        labels: `[B]` int64.
        samples: `[B]` int64, index of each sample within its split.
        tap_logits: `[B, D, K]` fp32, what the teacher says at each tap in depth order, its own
            classifier last: logits up to an additive constant per tap, so that
            `softmax(tap_logits / temperature)` is `q_d` at any temperature. None when the method
            needs no teacher.
        global_size: Samples of this batch over all workers.
    """

    images: Tensor
    labels: Tensor
    samples: Tensor
    tap_logits: Tensor | None
    global_size: int


class Method(nn.Module, ABC):
    """Base of all methods; subclasses are registered in `krscale.methods.METHODS`."""

    needs_teacher: bool = True
    """Whether batches must carry `tap_logits`."""

    @abstractmethod
    def forward(self, student: TapOutputs, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted loss terms `{name: [B]}` in fp32; their sum is the loss.

        Args:
            student: Logits `[B, K]` and tap features of the student.
            batch: Labels and the teacher's knowledge of the same samples.
        """

    def diagnostics(self) -> dict[str, Tensor]:
        """Return scalar tensors of the last forward worth logging; no gradient, no host sync."""
        return {}
