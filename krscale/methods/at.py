"""Attention transfer: the student learns where in the image the teacher's stages are active.

Source: Zagoruyko, Komodakis, Paying More Attention to Attention, ICLR 2017, arXiv 1612.03928.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from krscale.config.methods import ATReduction, ATSettings
from krscale.errors import UserError
from krscale.knowledge.aggregation import student_tap
from krscale.knowledge.features import Shapes, attention_map, feature_shapes
from krscale.methods.base import MethodContext
from krscale.methods.feature_method import FeatureMethod, shapes_of


def at_loss(
    student_maps: Sequence[Tensor],
    teacher_maps: Sequence[Tensor],
    reduction: ATReduction = "mean",
) -> Tensor:
    """Return the distance of the maps `Q` for each sample, `[B]` fp32; 0 where they agree.

    - `"mean"`: `sum_j mean_positions (Q_S^j - Q_T^j)^2`, the authors' code, which published
      comparisons use too. Stages with few positions weigh more.
    - `"sum"`: `1/2 * sum_j ||Q_S^j - Q_T^j||^2`, after equation 2 of the paper, but squared as in
      the code: the norm itself has a gradient of length 1 at any distance. All stages weigh alike.

    Args:
        student_maps: One `[B, H, W]` for each pair of stages, of norm 1.
        teacher_maps: The same of the teacher; gets no gradient.
        reduction: How the positions of a stage are reduced.

    Example:
        >>> here, there = torch.eye(4).view(4, 1, 2, 2)[:2]  # each active at one of four positions
        >>> at_loss([here], [there], "sum"), at_loss([here], [there], "mean")
        (tensor([1.]), tensor([0.5000]))
    """
    squares = [
        (student.float() - teacher.detach().float()).square().flatten(1)
        for student, teacher in zip(student_maps, teacher_maps, strict=True)
    ]
    if reduction == "mean":
        return torch.stack([stage.mean(dim=1) for stage in squares]).sum(dim=0)
    return 0.5 * torch.stack([stage.sum(dim=1) for stage in squares]).sum(dim=0)


class AT(FeatureMethod):
    """Labels, KD, and `at_loss` of every stage of the student with the teacher's.

    A stage is compared with the teacher's stage at the same relative depth; with equally many
    stages, one to one. Maps of unequal size are refused: the teacher's are stored as attention
    maps, so they cannot be pooled before the squares are taken, as published code does. Each
    reduction has its own weight, because the sum is larger by the number of positions.
    """

    settings_class = ATSettings
    term = "at"
    kind = "attention"
    takes_mixed_labels = True

    def __init__(self, context: MethodContext, settings: ATSettings) -> None:
        super().__init__(context, settings)
        self.reduction = settings.at_reduction
        if self.reduction == "mean":
            self.term_weight = settings.at_mean_weight
        self.check_shapes(
            context.student_stage_shapes, shapes_of(context.teacher_shapes, "attention")
        )

    @classmethod
    def check_shapes(cls, student: Shapes, teacher: Shapes) -> None:
        """Refuse maps of unequal size."""
        own = feature_shapes("attention", student)
        for number, (height, width) in enumerate(own, start=1):
            met = student_tap(number, len(own), len(teacher))
            if teacher[met - 1] != (height, width):
                theirs = "x".join(map(str, teacher[met - 1]))
                raise UserError(
                    f"method 'at': stage {number} of the student has maps of {height}x{width}, "
                    f"stage {met} of the teacher, at the same relative depth, of {theirs}. They "
                    "must be equal: choose networks of the same stages, or leave this method out."
                )

    def compare(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], labels: Tensor
    ) -> Tensor:
        """Return `at_loss`."""
        count = len(student)
        met = [teacher[student_tap(n, count, len(teacher)) - 1] for n in range(1, count + 1)]
        return at_loss([attention_map(stage) for stage in student], met, self.reduction)
