"""ReviewKD: every stage of the student, fused with all deeper ones, learns the teacher's map.

Source: Chen, Liu, Zhao, Jia, Distilling Knowledge via Knowledge Review, CVPR 2021, arXiv
2104.09044. ("Knowledge review" has nothing to do with Knowledge Representing, KR.)

Differences from the authors' code: maps are the stages' outputs after their activation, not before
it, as for all feature methods here. KD is a further term, as for all of them (in the authors' code
it is optional; `kd_weight = 0` turns it off).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krscale.config.methods import ReviewKDSettings
from krscale.knowledge.aggregation import student_tap
from krscale.knowledge.features import Shapes, feature_shapes, read_features
from krscale.knowledge.taps import pool
from krscale.methods.base import MethodContext
from krscale.methods.feature_method import FeatureMethod, shapes_of
from krscale.methods.numerics import at_least_fp32

_LEVELS = (4, 2, 1)
_MAX_CHANNELS = 512


def hcl_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Return the hierarchical context loss of each sample, `[B]` fp32; 0 where the maps agree.

    It is the sum over the pairs of maps of

        (d(s, t) + 1/2 d_4 + 1/4 d_2 + 1/8 d_1) / (1 + 1/2 + 1/4 + 1/8)

    as in the authors' code: `d` is the mean of the squared differences, and `d_l` is the same after
    both maps were averaged over `l x l` cells. Levels that are no coarser than the map are left
    out; the remaining ones get the weights 1/2, 1/4, ... in order.

    Args:
        student_maps: `[B, C, H, W]` each, of the teacher's shapes.
        teacher_maps: `[B, C, H, W]` each; get no gradient.

    Example:
        >>> teacher = torch.zeros(1, 1, 2, 2)
        >>> signs = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
        >>> hcl_loss([teacher + 1.0], [teacher])  # wrong at both levels
        tensor([1.])
        >>> hcl_loss([teacher + signs], [teacher])  # right in the mean: 1 / (1 + 1/2)
        tensor([0.6667])
    """
    return torch.stack(
        [
            _in_context(at_least_fp32(own), at_least_fp32(theirs.detach()))
            for own, theirs in zip(student_maps, teacher_maps, strict=True)
        ]
    ).sum(dim=0)


class ReviewKD(FeatureMethod):
    """Labels, KD, and `hcl_loss` of the student's stages, fused from deep to shallow.

    A stage is compared with the teacher's stage at the same relative depth; with equally many
    stages, one to one. The classifier's input counts as one more stage, the deepest. Maps may
    differ in size and channels. The fusions belong to the student's side of the comparison; they
    are trained with it and then dropped.
    """

    settings_class = ReviewKDSettings
    term = "reviewkd"
    kind = "maps"
    takes_mixed_labels = True
    share: Tensor

    def __init__(self, context: MethodContext, settings: ReviewKDSettings) -> None:
        super().__init__(context, settings)
        self.warmup = settings.reviewkd_warmup
        # A tensor, so that compiled code is not recompiled for every epoch.
        self.register_buffer("share", torch.tensor(1.0), persistent=False)
        own = feature_shapes("maps", context.student_stage_shapes)
        theirs = shapes_of(context.teacher_shapes, "maps")
        met = [theirs[student_tap(n, len(own), len(theirs)) - 1] for n in range(1, len(own) + 1)]
        pairs = [*zip(own, met, strict=True), ((own[-1][0], 1, 1), (theirs[-1][0], 1, 1))]
        self.heads = nn.ModuleList(
            _Fusion(channels, min(_MAX_CHANNELS, own[-1][0]), wanted, number + 1 < len(pairs))
            for number, ((channels, *_), wanted) in enumerate(pairs)
        )

    @classmethod
    def check_shapes(cls, student: Shapes, teacher: Shapes) -> None:
        """Refuse a student whose stages have no maps."""
        feature_shapes("maps", student)

    def begin_epoch(self, progress: float) -> None:
        """Set the share of the weight that the warm-up has reached."""
        self.share.fill_(min(1.0, progress / self.warmup) if self.warmup else 1.0)

    def compare(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], labels: Tensor
    ) -> Tensor:
        """Return `hcl_loss`, times the share of the warm-up."""
        maps = read_features("maps", student)
        fused = self.fuse([*maps, _as_map(maps[-1])])
        count = len(maps)
        met = [teacher[student_tap(n, count, len(teacher)) - 1] for n in range(1, count + 1)]
        return self.share * hcl_loss(fused, [*met, _as_map(teacher[-1])])

    def fuse(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the fused maps, of the teacher's shapes, from the student's; shallow to deep."""
        fused: list[Tensor] = []
        deeper = None
        for head, stage in zip(reversed(self.heads), reversed(maps), strict=True):
            found, deeper = head(stage, deeper)
            fused.insert(0, found)
        return fused


class _Fusion(nn.Module):
    """Attention-based fusion of a stage with what was fused from the deeper ones.

    Args:
        channels: Channels of the stage.
        width: Channels in which stages are fused, the same for all.
        wanted: `(C, H, W)` of the teacher's map.
        has_deeper: Whether there is a deeper stage.
    """

    def __init__(self, channels: int, width: int, wanted: Sequence[int], has_deeper: bool) -> None:
        super().__init__()
        self.size = (wanted[1], wanted[2])
        self.enter = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), _BatchNorm(width))
        self.leave = nn.Sequential(
            nn.Conv2d(width, wanted[0], 3, padding=1, bias=False), _BatchNorm(wanted[0])
        )
        self.attention = nn.Conv2d(2 * width, 2, 1) if has_deeper else None
        for convolution in (self.enter[0], self.leave[0]):
            assert isinstance(convolution, nn.Conv2d)  # noqa: S101 - for mypy
            nn.init.kaiming_uniform_(convolution.weight, a=1)

    def forward(self, stage: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the map to compare, `[B, *wanted]`, and the fused one for the next stage."""
        fused = self.enter(stage)
        if self.attention is not None and deeper is not None:
            deeper = _resized(deeper, (fused.shape[2], fused.shape[3]))
            gates = self.attention(torch.cat([fused, deeper], dim=1)).sigmoid()
            fused = fused * gates[:, :1] + deeper * gates[:, 1:]
        fused = _resized(fused, self.size)
        return self.leave(fused), fused


class _BatchNorm(nn.BatchNorm2d):
    """Batch norm that uses the running statistics if there is only one value per channel.

    The deepest map is 1x1, so a batch with one image has no variance; an empty batch has no mean.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `[B, C, H, W]`."""
        if self.training and input.numel() <= self.num_features:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)


def _in_context(student: Tensor, teacher: Tensor) -> Tensor:
    gap, weight = student - teacher, 1.0
    value = gap.square().flatten(1).mean(dim=1)
    total = weight
    for level in _LEVELS:
        if level < min(student.shape[2:]):
            coarse = F.adaptive_avg_pool2d(gap, level)
            weight /= 2.0
            value = value + weight * coarse.square().flatten(1).mean(dim=1)
            total += weight
    return value / total


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if (maps.shape[2], maps.shape[3]) == size:
        return maps
    return F.interpolate(maps, size, mode="nearest")


def _as_map(stage: Tensor) -> Tensor:
    """Return the classifier's input at a stage as a map, `[B, C, 1, 1]`."""
    return pool(stage)[:, :, None, None]
