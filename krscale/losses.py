"""The losses as pure functions, for a training loop of one's own.

All are called alike, `loss(student, teacher, labels, *, settings)`, so that one can take another's
place, and all return one number for each sample, `[B]` fp32, before any weight and without the
labels' cross-entropy: `loss(...).mean()` is what is added to it. The teacher gets no gradient. A
default is that of the experiment's setting of the same meaning (`krscale.config.methods`); the
mathematics is that of `krscale.methods`, which trials use.

`krscale.KRLoss` does the rest of Knowledge Representing: taps, probes, groups, auxiliary heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from krscale.config.fields import Positive, Share, Weight, check_number
from krscale.config.methods import (
    ATReduction,
    ATSettings,
    CRDSettings,
    DISTSettings,
    DKDSettings,
    KDSettings,
    KRSettings,
    LabelSmoothingSettings,
    LogitStandardisationSettings,
    RKDSettings,
)
from krscale.errors import UserError, unknown_name
from krscale.knowledge.features import attention_map
from krscale.knowledge.loss import kr_loss
from krscale.methods.at import at_loss
from krscale.methods.crd import crd_loss
from krscale.methods.dist import dist_loss
from krscale.methods.dkd import dkd_loss
from krscale.methods.fitnet import hint_loss
from krscale.methods.kd import kd_loss
from krscale.methods.label_smoothing import smoothed_cross_entropy
from krscale.methods.logit_standardisation import standardised_kd_loss
from krscale.methods.pkt import pkt_loss
from krscale.methods.reviewkd import hcl_loss
from krscale.methods.rkd import rkd_loss

__all__ = [
    "attention_transfer",
    "crd",
    "dist",
    "dkd",
    "fitnet",
    "kd",
    "kr",
    "label_smoothing",
    "logit_standardisation",
    "pkt",
    "reviewkd",
    "rkd",
]

_KD, _DKD, _DIST, _KR = KDSettings(), DKDSettings(), DISTSettings(), KRSettings()
_STANDARDISED, _SMOOTHING = LogitStandardisationSettings(), LabelSmoothingSettings()
_AT, _CRD, _RKD = ATSettings(), CRDSettings(), RKDSettings()


def kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = _KD.temperature,
) -> Tensor:
    """Return Hinton's loss, `temperature^2 * KL(teacher || student)` of the softened distributions.

    Source: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, arXiv
    1503.02531.

    Args:
        student_logits: `[B, K]`.
        teacher_logits: `[B, K]`.
        labels: Not used; every loss takes them.
        temperature: Temperature of both distributions.

    Returns:
        `[B]`; 0 where student and teacher agree.

    Example:
        >>> teacher = torch.tensor([[2.0, 0.0, -2.0], [0.0, 4.0, 0.0]])
        >>> student = torch.tensor([[2.0, 0.0, -2.0], [0.0, 0.0, 0.0]])
        >>> kd(student, teacher, temperature=1.0)
        tensor([0.0000, 0.9213])
    """
    _check_logits(student_logits, teacher_logits, labels)
    _check("kd", temperature=(Positive, temperature))
    return kd_loss(student_logits, teacher_logits, temperature)


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float = _DKD.temperature,
    target_weight: float = _DKD.dkd_target_weight,
    nontarget_weight: float = _DKD.dkd_nontarget_weight,
) -> Tensor:
    """Return decoupled KD: the label against the rest, and the rest among themselves.

    Source: Zhao, Cui, Song, Qiu, Liang, Decoupled Knowledge Distillation, CVPR 2022, arXiv
    2203.08679. The authors warm it up over the first 20 epochs; multiply by what you like.

    Args:
        student_logits: `[B, K]`.
        teacher_logits: `[B, K]`.
        labels: `[B]` int64.
        temperature: Temperature of all distributions.
        target_weight: Weight of the divergence between label and not label, alpha in the paper.
        nontarget_weight: Weight of the divergence among the other classes, beta in the paper.

    Returns:
        `[B]`; 0 where student and teacher agree.

    Example:
        >>> teacher = torch.tensor([[2.0, 0.0, -2.0], [0.0, 4.0, 0.0]])
        >>> student = torch.tensor([[2.0, 0.0, -2.0], [0.0, 0.0, 0.0]])
        >>> dkd(student, teacher, torch.tensor([0, 1]), temperature=1.0)
        tensor([0.0000, 0.9213])
    """
    _check_logits(student_logits, teacher_logits, labels)
    _check(
        "dkd",
        temperature=(Positive, temperature),
        target_weight=(Weight, target_weight),
        nontarget_weight=(Weight, nontarget_weight),
    )
    return dkd_loss(
        student_logits, teacher_logits, labels, temperature, target_weight, nontarget_weight
    )


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = _DIST.temperature,
    inter_weight: float = _DIST.dist_inter_weight,
    intra_weight: float = _DIST.dist_intra_weight,
) -> Tensor:
    """Return DIST: correlations with the teacher over the classes and over the batch.

    Source: Huang, You, Wang, Qian, Xu, Knowledge Distillation from A Stronger Teacher, NeurIPS
    2022, arXiv 2205.10536.

    Args:
        student_logits: `[B, K]`.
        teacher_logits: `[B, K]`.
        labels: Not used; every loss takes them.
        temperature: Temperature of both distributions.
        inter_weight: Weight of the relation between classes, beta in the paper.
        intra_weight: Weight of the relation within a class, gamma in the paper.

    Returns:
        `[B]`; 0 where student and teacher agree. The second relation is one of the whole batch, so
        every sample carries the same value of it.

    Example:
        >>> teacher = torch.tensor([[2.0, 0.0, -2.0], [0.0, 4.0, 0.0]])
        >>> dist(-teacher, teacher, temperature=1.0, intra_weight=0.0)
        tensor([1.6760, 2.0000])
    """
    _check_logits(student_logits, teacher_logits, labels)
    _check(
        "dist",
        temperature=(Positive, temperature),
        inter_weight=(Weight, inter_weight),
        intra_weight=(Weight, intra_weight),
    )
    return dist_loss(student_logits, teacher_logits, temperature, inter_weight, intra_weight)


def logit_standardisation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = _STANDARDISED.temperature,
) -> Tensor:
    """Return KD on logits brought to mean 0 and deviation 1: the student learns their shape alone.

    Source: Sun, Ren, Li, Wang, Cao, Logit Standardization in Knowledge Distillation, CVPR 2024,
    arXiv 2403.01427.

    Args:
        student_logits: `[B, K]`, K at least 3: of two logits only the order is left.
        teacher_logits: `[B, K]`.
        labels: Not used; every loss takes them.
        temperature: Temperature of both distributions after standardisation.

    Returns:
        `[B]`; 0 where one's logits are the other's times a positive number plus a constant.

    Example:
        >>> teacher = torch.tensor([[2.0, 0.0, -2.0], [0.0, 4.0, 0.0]])
        >>> student = torch.tensor([[9.0, 8.0, 7.0], [1.0, 0.0, 0.0]])
        >>> logit_standardisation(student, teacher, temperature=1.0).round(decimals=4).abs()
        tensor([0.0000, 1.0530])
    """
    _check_logits(student_logits, teacher_logits, labels)
    _check("logit_standardisation", temperature=(Positive, temperature))
    return standardised_kd_loss(student_logits, teacher_logits, temperature)


def kr(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = _KR.temperature,
    sparsity: float = _KR.sparsity,
) -> Tensor:
    """Return KD whose gradient is recoded: only the classes with most of the gap are corrected.

    The KR term for one group, the teacher's classifier (granularity 1 of a teacher without taps);
    `krscale.KRLoss` does it for all groups. The value is `temperature^2 * KL(teacher || student)`,
    as in `kd`; the gradient is `temperature * recode_gap(student - teacher)`, which for
    `sparsity = 0` is the value's own.

    Source of the idea: Liu, Wen, Gao, Tao, Chen, Osa, Kato, Knowledge Representing: Efficient,
    Sparse Representation of Prior Knowledge for Knowledge Distillation, CVPRW 2019, arXiv
    1911.05329.

    Args:
        student_logits: `[B, K]`.
        teacher_logits: `[B, K]`.
        labels: Not used; every loss takes them.
        temperature: Temperature of both distributions.
        sparsity: Share of each sign's gap to drop at most, in `[0, 1)`.

    Returns:
        `[B]`; 0 where student and teacher agree.

    Example:
        >>> teacher = torch.tensor([[0.0, 4.0, 0.0, 1.0]])
        >>> student = torch.zeros(1, 4, requires_grad=True)
        >>> loss = kr(student, teacher, temperature=1.0, sparsity=0.5)
        >>> loss.sum().backward()
        >>> loss.detach()
        tensor([1.0311])
        >>> student.grad  # the fourth class is nearest to the teacher's and left alone
        tensor([[ 0.3162, -0.6324,  0.3162,  0.0000]])
    """
    _check_logits(student_logits, teacher_logits, labels)
    _check("kr", temperature=(Positive, temperature), sparsity=(Share, sparsity))
    targets = (teacher_logits.detach().float() / temperature).softmax(dim=-1)
    one = torch.ones(1, device=student_logits.device)
    return kr_loss(student_logits[:, None], targets[:, None], one, temperature, sparsity)


def label_smoothing(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    *,
    label_smoothing: float = _SMOOTHING.label_smoothing,
) -> Tensor:
    """Return the cross-entropy with smoothed labels: soft targets without a teacher, the control.

    It takes the place of the labels' cross-entropy, and is not added to it. It is 0 for a label of
    -1, which stands for none.

    Source: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, Rethinking the Inception Architecture for
    Computer Vision, CVPR 2016, arXiv 1512.00567.

    Args:
        student_logits: `[B, K]`.
        teacher_logits: Not used, may be None; every loss takes them.
        labels: `[B]` int64.
        label_smoothing: Share of every label that is spread over all classes.

    Returns:
        `[B]`.

    Example:
        >>> label_smoothing(torch.tensor([[2.0, 0.0]]), None, torch.tensor([0]))
        tensor([0.2269])
    """
    _check_logits(student_logits, student_logits, labels)
    _check("label_smoothing", label_smoothing=(Share, label_smoothing))
    return smoothed_cross_entropy(student_logits, labels, label_smoothing)


def attention_transfer(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    labels: Tensor | None = None,
    *,
    reduction: ATReduction = _AT.at_reduction,
) -> Tensor:
    """Return how far the places differ where the stages of student and teacher are active.

    Source: Zagoruyko, Komodakis, Paying More Attention to Attention, ICLR 2017, arXiv 1612.03928.

    Args:
        student_features: One `[B, C, H, W]` for each stage.
        teacher_features: One `[B, C', H, W]` for each of them.
        labels: Not used; every loss takes them.
        reduction: Over positions: `"mean"`, as in the authors' code (their weight is 1000), or
            `"sum"`, half of it as in their equation.

    Returns:
        `[B]`; 0 where they agree.

    Example:
        >>> teacher = torch.eye(4).view(1, 4, 2, 2)  # active everywhere alike
        >>> attention_transfer([teacher[:, :1]], [teacher], reduction="sum")
        tensor([0.5000])
    """
    own, theirs = _pairs(student_features, teacher_features)
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
        labels: Not used; every loss takes them.

    Returns:
        `[B]`; 0 where they agree.

    Example:
        >>> fitnet(torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2))
        tensor([0.5000, 0.5000])
    """
    _same_shape(student_features, teacher_features)
    return hint_loss(student_features, teacher_features)


def pkt(student_features: Tensor, teacher_features: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return the divergence of which samples of the batch the two networks find alike.

    Source: Passalis, Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer,
    ECCV 2018, arXiv 1803.10837.

    Args:
        student_features: `[B, F]`, what its classifier reads.
        teacher_features: `[B, F']`.
        labels: Not used; every loss takes them.

    Returns:
        `[B]`; 0 where they agree. The samples are those of the batch at hand.

    Example:
        >>> teacher = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> pkt(2 * teacher, teacher).round(decimals=4).abs()
        tensor([0., 0., 0.])
        >>> bool((pkt(teacher.flip(1)[[0, 2, 1]], teacher) > 0).all())
        True
    """
    _same_batch(student_features, teacher_features)
    return pkt_loss(student_features, teacher_features)


def crd(
    student_features: Tensor,
    teacher_features: Tensor,
    labels: Tensor,
    *,
    temperature: float = _CRD.crd_temperature,
) -> Tensor:
    """Return the contrastive loss: a sample's two embeddings must find each other in the batch.

    Source: Tian, Krishnan, Isola, Contrastive Representation Distillation, ICLR 2020, arXiv
    1910.10699; the negatives are the samples of other classes in the batch, not a memory bank's.

    Args:
        student_features: `[B, E]`, embeddings of what the classifier reads by a linear layer of
            yours; only their directions matter.
        teacher_features: `[B, E]`, by another one. It learns, too: this loss alone gives its
            second argument a gradient.
        labels: `[B]` int64; samples of one's own class are no negatives.
        temperature: Of the similarities.

    Returns:
        `[B]`, never negative.

    Example:
        >>> embeddings = torch.eye(2)
        >>> crd(embeddings, embeddings, torch.tensor([0, 1]), temperature=0.1)
        tensor([0.8111, 0.8111])
    """
    _same_shape(student_features, teacher_features)
    _check_labels(labels, len(student_features))
    _check("crd", temperature=(Positive, temperature))
    return crd_loss(student_features, teacher_features, labels, temperature)


def reviewkd(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    labels: Tensor | None = None,
) -> Tensor:
    """Return ReviewKD's hierarchical context loss: squared distances of maps, fine and coarse.

    Source: Chen, Liu, Zhao, Jia, Distilling Knowledge via Knowledge Review, CVPR 2021, arXiv
    2104.09044; the attention-based fusion of the student's stages is a module of yours (or of
    `distill.method = "reviewkd"`).

    Args:
        student_features: One `[B, C, H, W]` for each stage, of the teacher's shape.
        teacher_features: One `[B, C, H, W]` for each of them.
        labels: Not used; every loss takes them.

    Returns:
        `[B]`; 0 where they agree. The sum over the stages.

    Example:
        >>> teacher = torch.ones(1, 3, 2, 2)
        >>> student = torch.tensor([2.0, 0.0, 2.0, 0.0]).view(1, 1, 2, 2).repeat(1, 3, 1, 1)
        >>> reviewkd([student], [teacher])  # each place is off by 1, their mean is right
        tensor([0.6667])
    """
    for own, theirs in zip(*_pairs(student_features, teacher_features), strict=True):
        _same_shape(own, theirs)
    return hcl_loss(student_features, teacher_features)


def rkd(
    student_features: Tensor,
    teacher_features: Tensor,
    labels: Tensor | None = None,
    *,
    distance_weight: float = _RKD.rkd_distance_weight,
    angle_weight: float = _RKD.rkd_angle_weight,
) -> Tensor:
    """Return how far distances and angles between the samples of the batch are from the teacher's.

    Source: Park, Kim, Lu, Cho, Relational Knowledge Distillation, CVPR 2019, arXiv 1904.05068.

    Args:
        student_features: `[B, F]`, what its classifier reads.
        teacher_features: `[B, F']`.
        labels: Not used; every loss takes them.
        distance_weight: Weight of the distances of pairs.
        angle_weight: Weight of the angles of triples.

    Returns:
        `[B]`; 0 where they agree, whatever the scale. The samples are those of the batch at hand;
        memory grows with the cube of their number.

    Example:
        >>> teacher = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        >>> rkd(2 * teacher, teacher)
        tensor([0., 0., 0.])
        >>> rkd(torch.tensor([[0.0], [1.0], [2.0]]), teacher, angle_weight=0.0)
        tensor([1.0417, 1.0417, 2.0833])
    """
    _same_batch(student_features, teacher_features)
    _check(
        "rkd",
        distance_weight=(Weight, distance_weight),
        angle_weight=(Weight, angle_weight),
    )
    return rkd_loss(student_features, teacher_features, distance_weight, angle_weight)


def _check(loss: str, **settings: tuple[Any, float]) -> None:
    """Refuse settings that an experiment would refuse: kind and value by name."""
    if torch.compiler.is_compiling():  # a compiler cannot follow the check
        return
    for name, (kind, value) in settings.items():
        check_number(kind, name, value, f"losses.{loss}")


def _check_logits(student: Tensor, teacher: Tensor, labels: Tensor | None) -> None:
    if student.ndim != 2:
        raise UserError(f"logits are [B, K], not {list(student.shape)}.")
    _same_shape(student, teacher)
    if labels is not None:
        _check_labels(labels, len(student))


def _check_labels(labels: Tensor, batch_size: int) -> None:
    if labels.shape != (batch_size,) or labels.dtype != torch.int64:
        raise UserError(
            f"labels are one int64 class number for each of the {batch_size} samples, not "
            f"{labels.dtype} of shape {list(labels.shape)}."
        )


def _same_shape(student: Tensor, teacher: Tensor) -> None:
    # Tensors of other shapes might be broadcast, and give a loss of something else.
    if student.shape != teacher.shape:
        raise UserError(
            f"student and teacher must be of one shape, but they are {list(student.shape)} and "
            f"{list(teacher.shape)}."
        )


def _same_batch(student: Tensor, teacher: Tensor) -> None:
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        raise UserError(
            f"features are [B, F] of one batch, but they are {list(student.shape)} and "
            f"{list(teacher.shape)}."
        )


def _pairs(
    student: Sequence[Tensor] | Tensor, teacher: Sequence[Tensor] | Tensor
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    if isinstance(student, Tensor) or isinstance(teacher, Tensor):
        raise UserError("stages are given as a list, one tensor [B, C, H, W] for each.")
    if len(student) != len(teacher) or not student:
        raise UserError(
            f"every stage of the student needs one of the teacher, but there are {len(student)} "
            f"and {len(teacher)}."
        )
    for own, theirs in zip(student, teacher, strict=True):
        if own.ndim != 4 or theirs.ndim != 4 or own.shape[2:] != theirs.shape[2:]:
            raise UserError(
                f"maps [B, C, H, W] of one size are needed, but they are {list(own.shape)} and "
                f"{list(theirs.shape)}."
            )
    return student, teacher
