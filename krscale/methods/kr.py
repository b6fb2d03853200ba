"""Knowledge Representing: groups of the teacher's taps teach, through a sparse gradient.

Source of the idea: Liu, Wen, Gao, Tao, Chen, Osa, Kato, Knowledge Representing: Efficient, Sparse
Representation of Prior Knowledge for Knowledge Distillation, CVPRW 2019, arXiv 1911.05329. The
formulation is krscale's own; see `krscale.knowledge`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from krscale.config.methods import KRSettings
from krscale.errors import KrscaleError
from krscale.knowledge.aggregation import (
    Groups,
    group_weights,
    mix_taps,
    split_taps,
    student_ends,
    tap_weights,
)
from krscale.knowledge.loss import kr_terms
from krscale.knowledge.parameters import ParameterSource
from krscale.knowledge.schedule import scheduled
from krscale.knowledge.taps import TapOutputs, pool
from krscale.methods.base import (
    Batch,
    LogitMethod,
    Method,
    MethodContext,
    Mixture,
    classes_of,
    label_cross_entropy,
    teacher_knowledge,
)


class KR(Method):
    """Cross-entropy with the labels, the KR objective, and what it is combined with.

    The deepest group teaches the student's own logits. Every other group teaches an auxiliary
    linear head on the student's tap where the group ends, by stage or by relative depth; a head
    that falls on the classifier reads the logits. Heads see where in the image a feature is: from
    the mean over all of it, the few channels of a small student's early taps would have to separate
    the classes.

    Args:
        context: What is known of teacher and student.
        settings: KR's own.
        combined: Methods on the logits to combine with, each with its weight.
    """

    settings_class = KRSettings
    takes_mixed_labels = True
    takes_unlabelled = True
    tap_weights: Tensor
    group_weights: Tensor
    current_sparsity: Tensor

    def __init__(
        self,
        context: MethodContext,
        settings: KRSettings,
        combined: Sequence[LogitMethod] = (),
    ) -> None:
        super().__init__()
        self.ce_weight, self.kr_weight = settings.ce_weight, settings.kr_weight
        self.temperature, self.mixing = settings.temperature, settings.mixing
        self.sparsity, self.sparsity_schedule = settings.sparsity, settings.sparsity_schedule
        # A tensor, so that compiled code need not be compiled again for every epoch.
        self.register_buffer("current_sparsity", torch.tensor(self.sparsity), persistent=False)
        self.begin_epoch(0.0)
        self.auxiliary_weight = settings.auxiliary_weight
        groups = split_taps(settings.granularity, context.num_teacher_taps, context.stage_ends)
        self.groups = groups
        self.weigh(context.information_gain)

        shapes = (*context.student_shapes, (context.num_classes,))
        ends = student_ends(groups, context.depths, settings.alignment)
        self.head_taps = ends[:-1]
        self.head_grid = settings.head_grid
        sizes = [pool(torch.zeros(1, *shape), self.head_grid).shape[1] for shape in shapes]
        self.heads = nn.ModuleList(
            nn.Linear(sizes[tap - 1], context.num_classes) for tap in self.head_taps
        )
        self.posterior = nn.ModuleList(combined)
        self.takes_mixed_labels = all(method.takes_mixed_labels for method in combined)
        self.takes_unlabelled = all(method.takes_unlabelled for method in combined)
        self.parameter_weight = settings.parameter_weight
        self.parameter_source = (
            _parameter_source(context, groups, ends) if self.parameter_weight > 0 else None
        )
        self._active_classes = torch.zeros(())

    def forward(self, student: TapOutputs, batch: Batch) -> dict[str, Tensor]:
        """Return the terms `ce`, `kr`, and one for each combined source."""
        return self.terms(student, teacher_knowledge(batch), batch.labels, batch.mixture)

    def terms(
        self,
        student: TapOutputs,
        tap_logits: Tensor,
        labels: Tensor,
        mixture: Mixture | None = None,
    ) -> dict[str, Tensor]:
        """Return the weighted terms of `forward`, `[B]` fp32 each.

        Args:
            student: Logits `[B, K]` and tap features of the student.
            tap_logits: `[B, D, K]` fp32 of the teacher, without gradient.
            labels: `[B]` int64; `UNLABELLED` of images without one.
            mixture: Of mixed images.
        """
        logits = student.logits.float()
        soft_targets = mix_taps(tap_logits, self.tap_weights, self.temperature, self.mixing)
        loss, active = kr_terms(
            self.group_logits(student),
            soft_targets,
            self.group_weights,
            self.temperature,
            self.sparsity if self.sparsity_schedule == "constant" else self.current_sparsity,
        )
        # A worker may hold no sample of the last batch; its mean is 0, not NaN.
        self._active_classes = active.sum() / max(active.numel(), 1)
        terms = {
            "ce": self.ce_weight * label_cross_entropy(logits, labels, mixture),
            "kr": self.kr_weight * loss,
        }
        classes = classes_of(labels, tap_logits[:, -1])
        for method in cast(list[LogitMethod], self.posterior):
            distilled = method.distillation(logits, tap_logits[:, -1], classes)
            terms[method.term] = method.term_weight * distilled
        if self.parameter_source is not None:
            # One scalar for the whole batch: every sample carries it, so that the mean does.
            whole = self.parameter_weight * self.parameter_source()
            terms["parameter"] = whole.expand(logits.shape[0])
        return terms

    def weigh(self, information_gain: Tensor) -> None:
        """Weigh taps and groups by the information gain `[D]` of the teacher's taps."""
        weights = group_weights(information_gain, self.groups)
        weights[:-1] *= self.auxiliary_weight
        self.register_buffer("group_weights", weights, persistent=False)
        shares = tap_weights(information_gain, self.groups)
        self.register_buffer("tap_weights", shares, persistent=False)

    def begin_epoch(self, progress: float) -> None:
        """Set the sparsity of this epoch."""
        self.current_sparsity.fill_(scheduled(self.sparsity, self.sparsity_schedule, progress))

    def group_logits(self, student: TapOutputs) -> Tensor:
        """Return the student's logits for every group, `[B, G, K]` fp32; its own come last."""
        features = (*student.features, student.logits)
        pooled = {tap: pool(features[tap - 1], self.head_grid) for tap in set(self.head_taps)}
        heads = zip(self.heads, self.head_taps, strict=True)
        auxiliary = [head(pooled[tap]) for head, tap in heads]
        return torch.stack([*auxiliary, student.logits.float()], dim=1)

    def diagnostics(self) -> dict[str, Tensor]:
        """Return `kr/active_classes`: classes with a gradient, mean over samples and groups."""
        return {"kr/active_classes": self._active_classes}


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
