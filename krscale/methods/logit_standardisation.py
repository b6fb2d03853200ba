"""Logit standardisation: KD on z-scored logits, so that the student learns their shape alone.

Source: Sun, Ren, Li, Wang, Cao, Logit Standardization in Knowledge Distillation, CVPR 2024,
arXiv 2403.01427.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from krscale.config.methods import LogitStandardisationSettings
from krscale.methods.base import LogitMethod
from krscale.methods.kd import kd_loss


def standardised_kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float
) -> Tensor:
    """Return `kd_loss` of the standardised logits, `[B]` fp32; 0 where their shapes agree.

    Each sample's logits are brought to mean 0 and variance 1 over the classes, which makes the
    temperature relative to each one's own spread.

    Args:
        student_logits: `[B, K]`.
        teacher_logits: `[B, K]`, up to an additive constant; gets no gradient.
        temperature: Temperature of both distributions after standardisation.
    """
    return kd_loss(_standardise(student_logits), _standardise(teacher_logits), temperature)


class LogitStandardisation(LogitMethod):
    """Cross-entropy with the labels, and `standardised_kd_loss` with the teacher's classifier."""

    settings_class = LogitStandardisationSettings
    term = "logit_standardisation"

    def distillation(
        self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor
    ) -> Tensor:
        """Return `standardised_kd_loss`."""
        return standardised_kd_loss(student_logits, teacher_logits, self.temperature)


def _standardise(logits: Tensor) -> Tensor:
    """Return `[B, K]` z-scores: a layer norm over the classes without affine part."""
    return F.layer_norm(logits.float(), logits.shape[-1:], eps=1e-6)
