"""Losses on logits: the student's `[B, K]` against the teacher's or the labels."""

from __future__ import annotations

import torch
from torch import Tensor

from krscale.config.fields import Share, Temperature, Weight
from krscale.config.methods import (
    DISTSettings,
    DKDSettings,
    KDSettings,
    KRSettings,
    LabelSmoothingSettings,
    LogitStandardisationSettings,
)
from krscale.knowledge.loss import kr_loss
from krscale.losses.checks import (
    check_finite,
    check_logits,
    check_settings,
)
from krscale.methods.dist import dist_loss
from krscale.methods.dkd import dkd_loss
from krscale.methods.kd import kd_loss
from krscale.methods.label_smoothing import smoothed_cross_entropy
from krscale.methods.logit_standardisation import standardised_kd_loss

_KD, _DKD, _DIST, _KR = KDSettings(), DKDSettings(), DISTSettings(), KRSettings()
_STANDARDISED, _SMOOTHING = LogitStandardisationSettings(), LabelSmoothingSettings()


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
        labels: Not used; accepted so that all losses have the same signature.
        temperature: Temperature of both distributions.

    Returns:
        `[B]`; 0 where student and teacher agree.

    Example:
        >>> teacher = torch.tensor([[2.0, 0.0, -2.0], [0.0, 4.0, 0.0]])
        >>> student = torch.tensor([[2.0, 0.0, -2.0], [0.0, 0.0, 0.0]])
        >>> kd(student, teacher, temperature=1.0)
        tensor([0.0000, 0.9213])
    """
    check_logits("kd", student_logits, teacher_logits, labels)
    check_settings("kd", temperature=(Temperature, temperature))
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
    """Return decoupled KD: the label against all other classes, and those among themselves.

    Source: Zhao, Cui, Song, Qiu, Liang, Decoupled Knowledge Distillation, CVPR 2022, arXiv
    2203.08679. The authors warm it up over the first 20 epochs; for that, multiply it by a factor.

    Args:
        student_logits: `[B, K]`.
        teacher_logits: `[B, K]`.
        labels: `[B]` int64.
        temperature: Temperature of all distributions.
        target_weight: Weight of the divergence of (label, not label), alpha in the paper.
        nontarget_weight: Weight of the divergence among the other classes, beta in the paper.

    Returns:
        `[B]`; 0 where student and teacher agree.

    Example:
        >>> teacher = torch.tensor([[2.0, 0.0, -2.0], [0.0, 4.0, 0.0]])
        >>> student = torch.tensor([[2.0, 0.0, -2.0], [0.0, 0.0, 0.0]])
        >>> dkd(student, teacher, torch.tensor([0, 1]), temperature=1.0)
        tensor([0.0000, 0.9213])
    """
    check_logits("dkd", student_logits, teacher_logits, labels, needs_labels=True)
    check_settings(
        "dkd",
        temperature=(Temperature, temperature),
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
        labels: Not used; accepted so that all losses have the same signature.
        temperature: Temperature of both distributions.
        inter_weight: Weight of the relation between classes, beta in the paper.
        intra_weight: Weight of the relation within a class, gamma in the paper.

    Returns:
        `[B]`; 0 where student and teacher agree. The second relation covers the whole batch, so
        every sample has the same value of it. The gradient grows without bound as the student's
        probabilities become equal: clip its norm (trials of krscale clip it at 2), especially if
        the student's classifier is initialised with zeros.

    Example:
        >>> teacher = torch.tensor([[2.0, 0.0, -2.0], [0.0, 4.0, 0.0]])
        >>> dist(-teacher, teacher, temperature=1.0, intra_weight=0.0)
        tensor([1.6760, 2.0000])
    """
    check_logits("dist", student_logits, teacher_logits, labels)
    check_settings(
        "dist",
        temperature=(Temperature, temperature),
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
    """Return KD on logits with mean 0 and deviation 1, so that only their shape is learned.

    Source: Sun, Ren, Li, Wang, Cao, Logit Standardization in Knowledge Distillation, CVPR 2024,
    arXiv 2403.01427.

    Args:
        student_logits: `[B, K]`, K at least 3: with two logits, only their order remains.
        teacher_logits: `[B, K]`.
        labels: Not used; accepted so that all losses have the same signature.
        temperature: Temperature of both distributions after standardisation.

    Returns:
        `[B]`; 0 where the student's logits are the teacher's times a positive number plus a
        constant. The gradient grows without bound as the student's logits become equal: clip its
        norm (trials of krscale clip it at 2), especially if the student's classifier is initialised
        with zeros.

    Example:
        >>> teacher = torch.tensor([[2.0, 0.0, -2.0], [0.0, 4.0, 0.0]])
        >>> student = torch.tensor([[9.0, 8.0, 7.0], [1.0, 0.0, 0.0]])
        >>> logit_standardisation(student, teacher, temperature=1.0).round(decimals=4).abs()
        tensor([0.0000, 1.0530])
    """
    check_logits("logit_standardisation", student_logits, teacher_logits, labels)
    check_finite(
        "logit_standardisation", student_logits=student_logits, teacher_logits=teacher_logits
    )
    check_settings("logit_standardisation", temperature=(Temperature, temperature))
    return standardised_kd_loss(student_logits, teacher_logits, temperature)


def kr(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = _KR.temperature,
    sparsity: float = _KR.sparsity,
) -> Tensor:
    """Return KD with a recoded gradient: only the classes with most of the gap are corrected.

    This is the KR term for one group, the teacher's classifier (granularity 1 of a teacher without
    taps); `krscale.KRLoss` computes it for all groups. The value is
    `temperature^2 * KL(teacher || student)`, as in `kd`. The gradient is
    `temperature * recode_gap(student - teacher)`, which for `sparsity = 0` is that of the value.

    Source of the idea: Liu, Wen, Gao, Tao, Chen, Osa, Kato, Knowledge Representing: Efficient,
    Sparse Representation of Prior Knowledge for Knowledge Distillation, CVPRW 2019, arXiv
    1911.05329.

    Args:
        student_logits: `[B, K]`.
        teacher_logits: `[B, K]`.
        labels: Not used; accepted so that all losses have the same signature.
        temperature: Temperature of both distributions.
        sparsity: Maximum share of each sign's gap to drop, in `[0, 1)`.

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
    check_logits("kr", student_logits, teacher_logits, labels)
    check_settings("kr", temperature=(Temperature, temperature), sparsity=(Share, sparsity))
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
    """Return the cross-entropy with smoothed labels, the control without a teacher.

    It replaces the labels' cross-entropy rather than being added to it. It is 0 for a label of -1,
    which means that the sample has none.

    Source: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, Rethinking the Inception Architecture for
    Computer Vision, CVPR 2016, arXiv 1512.00567.

    Args:
        student_logits: `[B, K]`.
        teacher_logits: Not used, may be None; accepted so that all losses have the same signature.
        labels: `[B]` int64.
        label_smoothing: Share of every label that is spread over all classes.

    Returns:
        `[B]`.

    Example:
        >>> label_smoothing(torch.tensor([[2.0, 0.0]]), None, torch.tensor([0]))
        tensor([0.2269])
    """
    check_logits(
        "label_smoothing",
        student_logits,
        student_logits,
        labels,
        lowest_label=-1,
        needs_labels=True,
    )
    check_settings("label_smoothing", label_smoothing=(Share, label_smoothing))
    return smoothed_cross_entropy(student_logits, labels, label_smoothing)
