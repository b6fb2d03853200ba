"""Contrastive representation distillation: a sample's two features are the positive pair.

Source: Tian, Krishnan, Isola, Contrastive Representation Distillation, ICLR 2020, arXiv 1910.10699.

Differences from the paper: the negatives are the samples of other classes in the batch (in each
worker's share of it), not 16,384 drawn from a memory bank of the whole data set, because workers
would have to share that bank. The objective on these samples is that of the authors' code. The
noise distribution is uniform over them, and the normaliser is exact instead of a constant estimated
from the first batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from krscale.config.methods import CRDSettings
from krscale.knowledge.features import directions, feature_shapes
from krscale.knowledge.taps import pool
from krscale.methods.base import MethodContext
from krscale.methods.feature_method import FeatureMethod, shapes_of
from krscale.methods.numerics import without_autocast

_SMALL = 1e-7


def crd_loss(
    student_embeddings: Tensor, teacher_embeddings: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """Return the noise-contrastive loss of each sample, `[B]` fp32, never negative.

    With `P_ij = exp(g_i . g_j / temperature)`, normalised over sample i itself and its `N`
    negatives, and `h_ij = P_ij / (P_ij + N / (N + 1))` (section 3.1 of the paper):

        - log h_ii - sum_{j negative} log(1 - h_ij)

    once with the student's embedding of i and the teacher's of j, once the other way round. A
    sample without negatives has a loss of 0.

    Args:
        student_embeddings: `[B, E]`; only their directions matter.
        teacher_embeddings: `[B, E]`, from a trained layer of the method.
        labels: `[B]` int64; samples of the same class are not negatives.
        temperature: Temperature of the similarities.

    Example:
        >>> student, teacher = torch.eye(2), 4.0 * torch.eye(2)  # of the same directions
        >>> labels, swapped = torch.tensor([0, 1]), teacher.flip(0)
        >>> crd_loss(student, teacher, labels, 0.1) < crd_loss(student, swapped, labels, 0.1)
        tensor([True, True])
        >>> crd_loss(student, teacher, torch.tensor([0, 0]), 0.1)  # one class: no negatives
        tensor([0., 0.])
    """
    student, teacher = (
        directions(student_embeddings.float()),
        directions(teacher_embeddings.float()),
    )
    with without_autocast(student):
        similarities = student @ teacher.T / temperature
    negatives = labels[:, None] != labels[None, :]
    return _contrast(similarities, negatives) + _contrast(similarities.T, negatives)


class CRD(FeatureMethod):
    """Labels, KD, and `crd_loss` of linear embeddings of the two classifiers' inputs.

    Both embeddings are trained, and exist in training only. For an image without a label, the
    negatives are determined by the teacher's most likely class.
    """

    settings_class = CRDSettings
    term = "crd"
    kind = "pooled"
    compares_samples = True

    def __init__(self, context: MethodContext, settings: CRDSettings) -> None:
        super().__init__(context, settings)
        self.crd_temperature = settings.crd_temperature
        ((teacher_size,),) = shapes_of(context.teacher_shapes, "pooled")
        ((student_size,),) = feature_shapes("pooled", context.student_stage_shapes)
        self.heads = nn.ModuleList(
            nn.Linear(size, settings.crd_embedding_size) for size in (student_size, teacher_size)
        )

    def compare(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], labels: Tensor
    ) -> Tensor:
        """Return `crd_loss`."""
        own, theirs = self.heads[0](pool(student[-1])), self.heads[1](teacher[0])
        return crd_loss(own, theirs, labels, self.crd_temperature)


def _contrast(similarities: Tensor, negatives: Tensor) -> Tensor:
    """Return the loss of the anchors, which are the rows; their positives are on the diagonal."""
    own = torch.eye(len(similarities), dtype=torch.bool, device=similarities.device)
    log_p = similarities.masked_fill(~(negatives | own), -torch.inf).log_softmax(dim=1)
    count = negatives.sum(dim=1)
    noise = (count / (count + 1)).to(log_p.dtype)
    p = log_p.exp()
    found = (p.diagonal() + noise).log() - log_p.diagonal()
    # -log(1 - h) = log(1 + P / noise)
    mistaken = torch.log1p(p / noise.clamp_min(_SMALL)[:, None]).masked_fill(~negatives, 0.0)
    return found + mistaken.sum(dim=1)
