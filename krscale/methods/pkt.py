"""Probabilistic knowledge transfer: the student learns the teacher's similarities between samples.

Source: Passalis, Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer,
ECCV 2018, arXiv 1803.10837.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from krscale.config.methods import PKTSettings
from krscale.knowledge.features import directions
from krscale.knowledge.taps import pool
from krscale.methods.feature_method import FeatureMethod
from krscale.methods.numerics import without_autocast

_SMALL = 1e-7


def pkt_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Return `sum_{j != i} q_{j|i} log(q_{j|i} / p_{j|i})` for each sample i, `[B]` fp32.

    `p_{j|i} = K(x_i, x_j) / sum_{k != i} K(x_i, x_k)` with the affinity
    `K(a, b) = (cos(a, b) + 1) / 2` of the student's features, and `q` the same of the teacher's
    (the paper's cosine kernel). It is 0 where they agree. The features may differ in size.
    With several workers the samples are those of each worker's share of the batch.

    Args:
        student_features: `[B, F_S]`.
        teacher_features: `[B, F_T]`; gets no gradient.

    Example:
        >>> loss = pkt_loss(4.0 * torch.eye(5)[:3], torch.eye(3))  # of another size, lying alike
        >>> loss.round(decimals=4).abs()
        tensor([0., 0., 0.])
    """
    with without_autocast(student_features):
        p = _affinities(student_features.float())
        q = _affinities(teacher_features.detach().float())
        return (q * ((q + _SMALL) / (p + _SMALL)).log()).sum(dim=1)


class PKT(FeatureMethod):
    """Labels, KD, and `pkt_loss` of the two classifiers' inputs."""

    settings_class = PKTSettings
    term = "pkt"
    kind = "pooled"
    takes_mixed_labels = True
    compares_samples = True

    def compare(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], labels: Tensor
    ) -> Tensor:
        """Return `pkt_loss`."""
        return pkt_loss(pool(student[-1]), teacher[0])


def _affinities(features: Tensor) -> Tensor:
    """Return each sample's affinities to the others, divided by their sum, `[B, B]`."""
    unit = directions(features)
    own = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    affinities = ((unit @ unit.T + 1.0) / 2.0).clamp_min(0.0).masked_fill(own, 0.0)
    # The sum is 0 for a sample that is alone in its share.
    return affinities / affinities.sum(dim=1, keepdim=True).clamp_min(_SMALL)
