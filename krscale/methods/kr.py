"""Knowledge Representing: groups of the teacher's taps teach the student by a sparse gradient.

Source of the idea: Liu, Wen, Gao, Tao, Chen, Osa, Kato, Knowledge Representing: Efficient, Sparse
Representation of Prior Knowledge for Knowledge Distillation, CVPRW 2019, arXiv 1911.05329. The
formulation is krscale's own; see `krscale.knowledge`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch import distributed as dist

from krscale.config.methods import KRSettings
from krscale.errors import KrscaleError
from krscale.knowledge.aggregation import (
    Groups,
    joined_weights,
    mix_taps,
    split_taps,
    student_ends,
)
from krscale.knowledge.loss import kr_terms
from krscale.knowledge.parameters import ParameterSource
from krscale.knowledge.schedule import scheduled, share_left
from krscale.knowledge.taps import TapOutputs, pool
from krscale.knowledge.where import WhereLoss, pair_stages
from krscale.methods.base import LogitMethod, Method, MethodContext, Reads
from krscale.methods.batch import Batch, Mixture, classes_of, label_cross_entropy, teacher_knowledge
from krscale.methods.feature_method import teacher_features


class KR(Method):
    """Cross-entropy with the labels, the KR objective, and the terms KR is combined with.

    The deepest group teaches the student's own logits. Every other group teaches an auxiliary
    linear head on the student's tap where the group ends, by stage or by relative depth; a head
    that falls on the classifier reads the logits. Heads read means over the cells of a grid, not
    over the whole image: the few channels of a small student's early taps could hardly separate the
    classes without positions. A second distribution, over positions, compares where stages are
    active.

    Args:
        context: The context of the teacher and the student.
        settings: KR's settings.
        combined: Methods on the logits to combine with, each with its weight.
    """

    settings_class = KRSettings
    takes_mixed_labels = True
    takes_unlabelled = True
    tap_weights: Tensor
    group_weights: Tensor
    current_sparsity: Tensor
    current_where_weight: Tensor

    def __init__(
        self,
        context: MethodContext,
        settings: KRSettings,
        combined: Sequence[LogitMethod] = (),
    ) -> None:
        super().__init__()
        self.settings = settings
        self.ce_weight, self.kr_weight = settings.ce_weight, settings.kr_weight
        self.temperature, self.mixing = settings.temperature, settings.mixing
        groups = split_taps(settings.granularity, context.num_teacher_taps, context.stage_ends)
        self.groups = groups
        # Tensors, so that compiled code is not recompiled for every epoch.
        for name in ("current_sparsity", "current_where_weight"):
            self.register_buffer(name, torch.tensor(0.0), persistent=False)
        self.register_buffer("group_weights", torch.zeros(len(groups)), persistent=False)
        num_taps = context.num_teacher_taps
        self.register_buffer("tap_weights", torch.zeros(len(groups), num_taps), persistent=False)
        self.progress, self.is_auxiliary_step = 0.0, True
        self.weigh(context.information_gain)

        shapes = (*context.student_shapes, (context.num_classes,))
        ends = student_ends(groups, context.depths, settings.alignment)
        self.head_taps = ends[:-1]
        self.head_grid = settings.head_grid
        sizes = [pool(torch.zeros(1, *shape), self.head_grid).shape[1] for shape in shapes]
        self.heads = nn.ModuleList(
            nn.Linear(sizes[tap - 1], context.num_classes) for tap in self.head_taps
        )
        self.where = _where_loss(context) if settings.where_weight > 0.0 else None
        self.feature_kinds = frozenset() if self.where is None else frozenset({"where"})
        self.posterior = nn.ModuleList(combined)
        self.takes_mixed_labels = all(method.takes_mixed_labels for method in combined)
        self.takes_unlabelled = all(method.takes_unlabelled for method in combined)
        self.parameter_weight = settings.parameter_weight
        self.parameter_source = (
            _parameter_source(context, groups, ends) if self.parameter_weight > 0 else None
        )
        self._active_classes = torch.zeros(())
        self.begin_epoch(0.0)

    def reads(self, taps: Sequence[str], stages: Sequence[str]) -> Reads:
        """Return the taps if there are heads, and the stages if positions are compared."""
        return Reads(taps if self.head_taps else (), () if self.where is None else stages)

    def forward(self, student: TapOutputs, batch: Batch) -> dict[str, Tensor]:
        """Return the terms `ce`, `kr`, and one for each further loss."""
        tap_logits = teacher_knowledge(batch)
        where = () if self.where is None else teacher_features(batch, "where")
        return self.terms(student, tap_logits, batch.labels, batch.mixture, where)

    def terms(
        self,
        student: TapOutputs,
        tap_logits: Tensor,
        labels: Tensor,
        mixture: Mixture | None = None,
        where: Sequence[Tensor] = (),
    ) -> dict[str, Tensor]:
        """Return the weighted terms of `forward`, `[B]` fp32 each.

        Args:
            student: Logits `[B, K]` and tap features of the student.
            tap_logits: `[B, D, K]` fp32 of the teacher, without gradient.
            labels: `[B]` int64; `UNLABELLED` for images without one.
            mixture: `Batch.mixture`.
            where: The teacher's distributions over positions, one for each stage.
        """
        logits = student.logits.float()
        taught = slice(None if self._reads_heads else -1, None)
        weights = self.tap_weights[taught]
        soft_targets = mix_taps(tap_logits, weights, self.temperature, self.mixing)
        constant = self.settings.sparsity_schedule == "constant"
        loss, active = kr_terms(
            self.group_logits(student),
            soft_targets,
            self.group_weights[taught],
            self.temperature,
            self.settings.sparsity if constant else self.current_sparsity,
        )
        # A worker may hold no sample of the last batch; its mean is 0, not NaN.
        self._active_classes = active.sum() / max(active.numel(), 1)
        terms = {
            "ce": self.ce_weight * label_cross_entropy(logits, labels, mixture),
            "kr": self.kr_weight * loss,
        }
        if self.posterior:
            classes = classes_of(labels, tap_logits[:, -1])
            for method in cast(list[LogitMethod], self.posterior):
                distilled = method.distillation(logits, tap_logits[:, -1], classes)
                terms[method.term] = method.term_weight * distilled
        if self.where is not None and self.teaches_where:
            terms["where"] = (
                self.current_where_weight * self.where(student.stages, where)
                if self.is_auxiliary_step
                else torch.zeros_like(loss)  # every step of an epoch has the same terms
            )
        if self.parameter_source is not None:
            # One scalar for the whole batch: every sample gets it, so that their mean equals it.
            whole = self.parameter_weight * self.parameter_source()
            terms["parameter"] = whole.expand(logits.shape[0])
        return terms

    def weigh(self, information_gain: Tensor) -> None:
        """Compute the weights of taps and groups from the information gain `[D]` of the taps."""
        self.information_gain = information_gain.detach().cpu()
        self._weigh_groups()

    def begin_epoch(self, progress: float) -> None:
        """Set the values for this epoch of all settings that change over the training."""
        self.progress, settings = float(progress), self.settings
        sparsity = scheduled(settings.sparsity, settings.sparsity_schedule, self.progress)
        self.current_sparsity.fill_(sparsity)
        left = self._left() if settings.where_schedule == "falling" else 1.0
        weight = settings.where_weight * settings.auxiliary_interval
        self.current_where_weight.fill_(weight * left)
        self.teaches_where = left > 0.0
        if settings.auxiliary_schedule != "constant":
            self._weigh_groups()

    def begin_step(self, step: int) -> None:
        """Teach the auxiliary groups and the positions in this step, or leave them out."""
        self.is_auxiliary_step = step % self.settings.auxiliary_interval == 0

    @property
    def reads_blocks(self) -> bool:
        """Whether heads or positions are taught in this step."""
        stages = self.where is not None and self.teaches_where and self.is_auxiliary_step
        return self._reads_heads or stages

    def untaught_weights(self) -> Sequence[nn.Parameter]:
        """Return the weights of the heads in steps without them."""
        return () if self._reads_heads else tuple(self.heads.parameters())

    @property
    def _reads_heads(self) -> bool:
        return self.teaches_heads and self.is_auxiliary_step

    def group_logits(self, student: TapOutputs) -> Tensor:
        """Return the student's logits for every group, `[B, G, K]` fp32; its own logits come last.

        If no other group is taught in this step, only its own logits, `[B, 1, K]`.
        """
        logits = student.logits.float()
        if not self._reads_heads:
            if self.head_taps and dist.is_available() and dist.is_initialized():
                # Data-parallel training waits for the gradient of every parameter.
                unused = [parameter.sum() for parameter in self.heads.parameters()]
                logits = logits + 0.0 * torch.stack(unused).sum()
            return logits.unsqueeze(1)
        features = (*student.features, student.logits)
        pooled = {tap: pool(features[tap - 1], self.head_grid) for tap in set(self.head_taps)}
        heads = zip(self.heads, self.head_taps, strict=True)
        auxiliary = [head(pooled[tap]) for head, tap in heads]
        return torch.stack([*auxiliary, logits], dim=1)

    def _weigh_groups(self) -> None:
        settings, count = self.settings, len(self.groups)
        factor, left = settings.auxiliary_weight * settings.auxiliary_interval, self._left()
        if settings.auxiliary_schedule == "coarsening":
            # Rounding keeps tiny excesses over a whole number from adding a group.
            count = 1 + math.ceil(round(left * (count - 1), 9))
        elif settings.auxiliary_schedule == "falling":
            factor *= left
        shares, weights = joined_weights(self.information_gain, self.groups, count)
        weights[:-1] *= factor
        self.teaches_heads = bool((weights[:-1] > 0.0).any())
        self.tap_weights.copy_(shares)
        self.group_weights.copy_(weights)

    def _left(self) -> float:
        return share_left(self.progress, self.settings.auxiliary_until)

    def diagnostics(self) -> dict[str, Tensor]:
        """Return `kr/active_classes`: classes with a gradient, averaged over samples and groups."""
        return {"kr/active_classes": self._active_classes}


def _where_loss(context: MethodContext) -> WhereLoss | None:
    """Return the loss on positions; None if the teacher has none stored or no two stages match."""
    teacher = context.teacher_shapes.get("where", ())
    pairs = pair_stages(
        context.student_stage_shapes,
        [(rows, columns) for rows, columns in teacher],
        context.student_image_shape,
    )
    return WhereLoss(pairs) if pairs else None


def _parameter_source(
    context: MethodContext, groups: Groups, ends: Sequence[int]
) -> ParameterSource:
    if context.teacher_histograms is None:
        raise KrscaleError(
            "parameter_weight is above 0, but the teacher's histograms are not given"
        )
    return ParameterSource(
        groups,
        context.teacher_histograms,
        context.teacher_layer_sizes,
        context.student_layers,
        ends,
    )
