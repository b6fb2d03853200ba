"""DIST: the student learns the teacher's rankings, by correlation instead of divergence.

Source: Huang, You, Wang, Qian, Xu, Knowledge Distillation from A Stronger Teacher, NeurIPS 2022,
arXiv 2205.10536.
"""

from __future__ import annotations

import torch
from torch import Tensor

from krscale.config.methods import DISTSettings
from krscale.methods.base import LogitMethod, MethodContext

MIN_NORM = 1e-6
"""Minimum norm; a shorter centred vector is rounding noise in fp32 and has no direction."""


def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    inter_weight: float,
    intra_weight: float,
) -> Tensor:
    """Return `temperature^2 * (inter_weight * inter + intra_weight * intra)`, `[B]` fp32.

    `inter` is one minus the Pearson correlation of student and teacher probabilities over the
    classes, for each sample. `intra` is the same over the samples of the batch, averaged over the
    classes, so every sample has the same value. Both are 0 where student and teacher agree. With
    several workers, `intra` is computed over each worker's share of the batch.

    Args:
        student_logits: `[B, K]`.
        teacher_logits: `[B, K]`, up to an additive constant; gets no gradient.
        temperature: Temperature of both distributions.
        inter_weight: Weight of the relation between classes, beta in the paper.
        intra_weight: Weight of the relation within a class, gamma in the paper.

    Example:
        >>> teacher = torch.tensor([[2.0, 0.0, -2.0], [0.0, 4.0, 0.0]])
        >>> moved = dist_loss(teacher + 8.0, teacher, 4.0, inter_weight=1.0, intra_weight=1.0)
        >>> moved.round(decimals=4).abs()
        tensor([0., 0.])
        >>> intra = dist_loss(teacher.flip(0), teacher, 1.0, inter_weight=0.0, intra_weight=1.0)
        >>> intra.round(decimals=4)  # in every class the two samples change places: 1 - (-1)
        tensor([2., 2.])
    """
    student = (student_logits.float() / temperature).softmax(dim=-1)
    teacher = (teacher_logits.detach().float() / temperature).softmax(dim=-1)
    inter = _uncorrelated(student, teacher, dim=1)
    intra = _uncorrelated(student, teacher, dim=0).mean()
    return temperature**2 * (inter_weight * inter + intra_weight * intra)


class DIST(LogitMethod):
    """Cross-entropy with the labels, and `dist_loss` with the teacher's classifier."""

    settings_class = DISTSettings
    term = "dist"
    takes_mixed_labels = True
    compares_samples = True

    def __init__(self, context: MethodContext, settings: DISTSettings) -> None:
        super().__init__(context, settings)
        self.inter_weight = settings.dist_inter_weight
        self.intra_weight = settings.dist_intra_weight

    def distillation(
        self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor
    ) -> Tensor:
        """Return `dist_loss`."""
        return dist_loss(
            student_logits,
            teacher_logits,
            self.temperature,
            self.inter_weight,
            self.intra_weight,
        )


def _uncorrelated(first: Tensor, second: Tensor, dim: int) -> Tensor:
    """Return one minus the Pearson correlation along `dim`.

    It is computed as half the squared distance of the two standardised directions. That is the same
    number, but exactly 0 with gradient 0 where the two agree, even if both are constant.
    """
    distance: Tensor = _direction(first, dim) - _direction(second, dim)
    return 0.5 * distance.square().sum(dim=dim)


def _direction(values: Tensor, dim: int) -> Tensor:
    centred = values - values.mean(dim=dim, keepdim=True)
    norm: Tensor = torch.linalg.vector_norm(centred, dim=dim, keepdim=True)
    return centred / norm.clamp_min(MIN_NORM)
