"""Logit standardisation: KD on z-scored logits, so that only their shape is learned.

Source: Sun, Ren, Li, Wang, Cao, Logit Standardization in Knowledge Distillation, CVPR 2024,
arXiv 2403.01427.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from krscale.config.methods import LogitStandardisationSettings
from krscale.methods.base import LogitMethod
from krscale.methods.kd import kd_loss
from krscale.methods.numerics import at_least_fp32

SMALL = 1e-7
"""Added to the deviation, as in the authors' code: logits that are all equal give zeros."""


def standardised_kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float
) -> Tensor:
    """Return `kd_loss` of the standardised logits, `[B]` fp32; 0 where their shapes agree.

    Each sample's logits are scaled to mean 0 and deviation 1 over the classes (`standardise`), so
    the temperature is relative to the spread of each sample. The gradient grows as the student's
    spread shrinks, and stays finite where it is 0. Logits in fp64 give fp64.

    With two classes, only the order of the two logits remains: the loss is 0 where student and
    teacher agree on it and a constant where they do not, and it has no gradient. The student then
    learns from the labels alone.

    Args:
        student_logits: `[B, K]`.
        teacher_logits: `[B, K]`, up to an additive constant; gets no gradient.
        temperature: Temperature of both distributions after standardisation.

    Example:
        >>> near, far = torch.tensor([[0.1, 0.0]]), torch.tensor([[9.0, 0.0]])
        >>> standardised_kd_loss(near, far, 2.0).round(decimals=4).abs()  # only the order is left
        tensor([0.])
        >>> wrong = [standardised_kd_loss(-logits, far, 2.0) for logits in (near, far)]
        >>> torch.allclose(*wrong)
        True
    """
    return kd_loss(standardise(student_logits), standardise(teacher_logits), temperature)


class LogitStandardisation(LogitMethod):
    """Cross-entropy with the labels, and `standardised_kd_loss` with the teacher's classifier."""

    settings_class = LogitStandardisationSettings
    term = "logit_standardisation"
    takes_mixed_labels = True

    def distillation(
        self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor
    ) -> Tensor:
        """Return `standardised_kd_loss`."""
        return standardised_kd_loss(student_logits, teacher_logits, self.temperature)


def standardise(logits: Tensor) -> Tensor:
    """Return the z-scores of every sample's logits, `[B, K]` fp32 (fp64 of fp64 logits).

    That is `(z - mean) / (SMALL + s)` with the unbiased deviation `s` (divided by K - 1), as in the
    authors' code. For two logits it is `-1/sqrt(2)` and `1/sqrt(2)` whatever their distance, but a
    quotient of rounding errors where they are close. For K = 2 it is therefore computed from their
    order, and has no gradient.

    Args:
        logits: `[B, K]`, K at least 2.

    Example:
        >>> logits = torch.tensor([[1.0, 2.0, 3.0], [10.0, 30.0, 50.0], [7.0, 7.0, 7.0]])
        >>> standardise(logits).round(decimals=4)
        tensor([[-1.,  0.,  1.],
                [-1.,  0.,  1.],
                [ 0.,  0.,  0.]])
    """
    logits = at_least_fp32(logits)
    centred = logits - logits.mean(dim=-1, keepdim=True)
    if logits.shape[-1] == 2:
        return centred.sign() / math.sqrt(2.0)
    # Not `torch.std`, which warns for an empty batch.
    norm: Tensor = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    return centred / (SMALL + norm / math.sqrt(logits.shape[-1] - 1))
