"""Losses on features, the layers before the logits: `[B, F]` or maps `[B, C, H, W]`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from torch import Tensor

from krscale.config.fields import Temperature, Weight
from krscale.config.methods import ATReduction, ATSettings, CRDSettings, RKDSettings
from krscale.errors import unknown_name
from krscale.knowledge.features import attention_map
from krscale.losses.checks import (
    check_labels,
    check_same_batch,
    check_same_shape,
    check_settings,
    checked_stages,
)
from krscale.methods.at import at_loss
from krscale.methods.crd import crd_loss
from krscale.methods.fitnet import hint_loss
from krscale.methods.pkt import pkt_loss
from krscale.methods.reviewkd import hcl_loss
from krscale.methods.rkd import rkd_loss

_AT, _CRD, _RKD = ATSettings(), CRDSettings(), RKDSettings()


def attention_transfer(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    labels: Tensor | None = None,
    *,
    reduction: ATReduction = _AT.at_reduction,
) -> Tensor:
    """Return the difference between the positions at which student and teacher are active.

    Source: Zagoruyko, Komodakis, Paying More Attention to Attention, ICLR 2017, arXiv 1612.03928.

    Args:
        student_features: One `[B, C, H, W]` for each stage.
        teacher_features: One `[B, C', H, W]` for each of them.
        labels: Not used; accepted so that all losses have the same signature.
        reduction: Over positions: `"mean"`, as in the authors' code (with a weight of 1000), or
            `"sum"`, half the sum of squares, after their equation.

    Returns:
        `[B]`; 0 where they agree.

    Example:
        >>> teacher = torch.eye(4).view(1, 4, 2, 2)  # active everywhere alike
        >>> attention_transfer([teacher[:, :1]], [teacher], reduction="sum")
        tensor([0.5000])
    """
    own, theirs = checked_stages("attention_transfer", student_features, teacher_features)
    if reduction not in get_args(ATReduction):
        where = "losses.attention_transfer"
        raise unknown_name("reduction", str(reduction), get_args(ATReduction), where)
    return at_loss(
        [attention_map(stage) for stage in own],
        [attention_map(stage) for stage in theirs],
        reduction,
    )


def fitnet(
    student_features: Tensor, teacher_features: Tensor, labels: Tensor | None = None
) -> Tensor:
    """Return FitNet's hint loss: half the mean squared distance of two feature maps.

    Source: Romero, Ballas, Kahou, Chassang, Gatta, Bengio, FitNets: Hints for Thin Deep Nets, ICLR
    2015, arXiv 1412.6550; divided by the number of elements, so that one weight suits every map.

    Args:
        student_features: `[B, C, H, W]`, the student's map after a regressor of yours, such as a
            1x1 convolution, that gives it the teacher's shape.
        teacher_features: `[B, C, H, W]`.
        labels: Not used; accepted so that all losses have the same signature.

    Returns:
        `[B]`; 0 where they agree.

    Example:
        >>> fitnet(torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2))
        tensor([0.5000, 0.5000])
    """
    check_same_shape("fitnet", student_features, teacher_features)
    return hint_loss(student_features, teacher_features)


def pkt(student_features: Tensor, teacher_features: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return the divergence of the similarities between the samples in the two networks.

    Source: Passalis, Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer,
    ECCV 2018, arXiv 1803.10837.

    Args:
        student_features: `[B, F]`, the input of the student's classifier.
        teacher_features: `[B, F']`.
        labels: Not used; accepted so that all losses have the same signature.

    Returns:
        `[B]`; 0 where they agree. Only samples of the given batch are compared.

    Example:
        >>> teacher = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> pkt(2 * teacher, teacher).round(decimals=4).abs()
        tensor([0., 0., 0.])
        >>> bool((pkt(teacher.flip(1)[[0, 2, 1]], teacher) > 0).all())
        True
    """
    check_same_batch("pkt", student_features, teacher_features)
    return pkt_loss(student_features, teacher_features)


def crd(
    student_features: Tensor,
    teacher_features: Tensor,
    labels: Tensor,
    *,
    temperature: float = _CRD.crd_temperature,
) -> Tensor:
    """Return the contrastive loss: a sample's two embeddings against those of other classes.

    Source: Tian, Krishnan, Isola, Contrastive Representation Distillation, ICLR 2020, arXiv
    1910.10699; the negatives are the samples of other classes in the batch, not a memory bank's.

    Args:
        student_features: `[B, E]`, linear embeddings of the classifier's input, by a layer of
            yours; only their directions matter.
        teacher_features: `[B, E]`, embedded by another such layer. That layer learns, too: this
            loss is the only one that gives its second argument a gradient.
        labels: `[B]` int64; samples of the same class are not negatives.
        temperature: Temperature of the similarities.

    Returns:
        `[B]`, never negative.

    Example:
        >>> embeddings = torch.eye(2)
        >>> crd(embeddings, embeddings, torch.tensor([0, 1]), temperature=0.1)
        tensor([0.8111, 0.8111])
    """
    check_same_batch("crd", student_features, teacher_features)
    check_same_shape("crd", student_features, teacher_features)
    check_labels("crd", labels, len(student_features))
    check_settings("crd", temperature=(Temperature, temperature))
    return crd_loss(student_features, teacher_features, labels, temperature)


def reviewkd(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    labels: Tensor | None = None,
) -> Tensor:
    """Return ReviewKD's hierarchical context loss: squared distances of maps, fine and coarse.

    Source: Chen, Liu, Zhao, Jia, Distilling Knowledge via Knowledge Review, CVPR 2021, arXiv
    2104.09044. You supply the attention-based fusion of the student's stages (or use
    `distill.method = "reviewkd"`).

    Args:
        student_features: One `[B, C, H, W]` for each stage, of the teacher's shape.
        teacher_features: One `[B, C, H, W]` for each of them.
        labels: Not used; accepted so that all losses have the same signature.

    Returns:
        `[B]`, the sum over the stages; 0 where they agree.

    Example:
        >>> teacher = torch.ones(1, 3, 2, 2)
        >>> student = torch.tensor([2.0, 0.0, 2.0, 0.0]).view(1, 1, 2, 2).repeat(1, 3, 1, 1)
        >>> reviewkd([student], [teacher])  # each place is off by 1, their mean is right
        tensor([0.6667])
    """
    for own, theirs in zip(
        *checked_stages("reviewkd", student_features, teacher_features), strict=True
    ):
        check_same_shape("reviewkd", own, theirs)
    return hcl_loss(student_features, teacher_features)


def rkd(
    student_features: Tensor,
    teacher_features: Tensor,
    labels: Tensor | None = None,
    *,
    distance_weight: float = _RKD.rkd_distance_weight,
    angle_weight: float = _RKD.rkd_angle_weight,
) -> Tensor:
    """Return how far the distances and angles between samples differ from the teacher's.

    Source: Park, Kim, Lu, Cho, Relational Knowledge Distillation, CVPR 2019, arXiv 1904.05068.

    Args:
        student_features: `[B, F]`, the input of the student's classifier.
        teacher_features: `[B, F']`.
        labels: Not used; accepted so that all losses have the same signature.
        distance_weight: Weight of the distances of pairs.
        angle_weight: Weight of the angles of triples.

    Returns:
        `[B]`; 0 where they agree, whatever the scale. Only samples of the given batch are compared.
        Memory grows with the cube of the batch size.

    Example:
        >>> teacher = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        >>> rkd(2 * teacher, teacher)
        tensor([0., 0., 0.])
        >>> rkd(torch.tensor([[0.0], [1.0], [2.0]]), teacher, angle_weight=0.0)
        tensor([1.0417, 1.0417, 2.0833])
    """
    check_same_batch("rkd", student_features, teacher_features)
    check_settings(
        "rkd",
        distance_weight=(Weight, distance_weight),
        angle_weight=(Weight, angle_weight),
    )
    return rkd_loss(student_features, teacher_features, distance_weight, angle_weight)
