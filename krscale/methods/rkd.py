"""Relational knowledge distillation: the student learns distances and angles between embeddings.

Source: Park, Kim, Lu, Cho, Relational Knowledge Distillation, CVPR 2019, arXiv 1904.05068.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from krscale.config.methods import RKDSettings
from krscale.knowledge.features import MIN_NORM
from krscale.knowledge.taps import pool
from krscale.methods.base import MethodContext
from krscale.methods.feature_method import FeatureMethod
from krscale.methods.numerics import at_least_fp32, without_autocast


def rkd_loss(
    student_features: Tensor,
    teacher_features: Tensor,
    distance_weight: float,
    angle_weight: float,
) -> Tensor:
    """Return the weighted distance-wise and angle-wise loss, `[B]` fp32; 0 where both agree.

    As in the authors' code, with the Huber loss `h` (smooth L1) of student and teacher:

    - distances `|x_i - x_j|` are divided by the mean of those that are not 0; the value of sample i
      is the mean of `h` over all j;
    - the angle at i between j and k is `cos = u_ij . u_ik` with `u_ij = (x_j - x_i) / |x_j - x_i|`;
      the value of sample i is the mean of `h` over all j and k.

    The mean over the samples is the authors' value for the batch. Coinciding samples have neither
    direction nor gradient here; in the authors' code their gradient grows without bound. With
    several workers, the samples are those of each worker's share of the batch. Memory grows with
    the cube of their number.

    Args:
        student_features: `[B, F_S]`.
        teacher_features: `[B, F_T]`; gets no gradient.
        distance_weight: Weight of the distances.
        angle_weight: Weight of the angles.

    Example:
        >>> teacher = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        >>> student = torch.tensor([[1.0, 1.0], [1.0, 7.0], [-7.0, 1.0]])  # moved, turned, doubled
        >>> rkd_loss(student, teacher, 1.0, 2.0).round(decimals=4).abs()
        tensor([0., 0., 0.])
    """
    with without_autocast(student_features):
        distances, directions = _relations(at_least_fp32(student_features))
        with torch.no_grad():
            their_distances, their_directions = _relations(at_least_fp32(teacher_features))
            their_angles = their_directions @ their_directions.transpose(1, 2)
        angles = directions @ directions.transpose(1, 2)
    of_pairs = F.smooth_l1_loss(distances, their_distances, reduction="none").mean(dim=1)
    of_triples = F.smooth_l1_loss(angles, their_angles, reduction="none").mean(dim=(1, 2))
    return distance_weight * of_pairs + angle_weight * of_triples


class RKD(FeatureMethod):
    """Labels, KD, and `rkd_loss` of the two classifiers' inputs."""

    settings_class = RKDSettings
    term = "rkd"
    kind = "pooled"
    takes_mixed_labels = True
    compares_samples = True

    def __init__(self, context: MethodContext, settings: RKDSettings) -> None:
        super().__init__(context, settings)
        self.distance_weight = settings.rkd_distance_weight
        self.angle_weight = settings.rkd_angle_weight

    def compare(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], labels: Tensor
    ) -> Tensor:
        """Return `rkd_loss`."""
        own = pool(student[-1])
        return rkd_loss(own, teacher[0], self.distance_weight, self.angle_weight)


def _relations(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return distances over their mean, `[B, B]`, and unit vectors from i to j, `[B, B, F]`."""
    between = features[None, :] - features[:, None]
    squares = between.square().sum(dim=2)
    apart = squares > MIN_NORM**2
    # The gradient of the root is not finite at 0, so zeros are replaced first.
    lengths = squares.where(apart, 1.0).sqrt()
    distances = lengths.where(apart, 0.0)
    mean = distances.sum() / apart.sum().clamp_min(1)
    directions = between * (apart / lengths)[:, :, None]
    return distances / mean.clamp_min(MIN_NORM), directions
