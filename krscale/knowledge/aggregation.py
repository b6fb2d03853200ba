"""Aggregation: the groups of the teacher's taps, and the distribution of each group.

Granularity is how finely the teacher's depth is divided: one group for the whole network, one for
each stage, or one for each tap. A group's distribution is the mean of those of its taps, each
weighted by its information gain on the labels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from krscale.choices import ALIGNMENTS, LEVELS, MIXINGS
from krscale.errors import KrscaleError, UserError, unknown_name

Groups = tuple[tuple[int, int], ...]
"""Half-open ranges of taps `(start, stop)`, contiguous and in depth order."""


def split_taps(granularity: int | str, num_taps: int, stage_ends: Sequence[int]) -> Groups:
    """Divide `num_taps` taps into contiguous groups.

    A number `G` gives groups of near-equal length: group `g` of `G` ends at tap
    `ceil(g * num_taps / G)`, the same relative depth that `student_tap` uses.

    Args:
        granularity: The number of groups, or a level: `"network"`, `"stage"`, `"layer"`.
        num_taps: Number of the teacher's taps, its classifier included.
        stage_ends: For each stage the 1-based number of its last tap; the last is `num_taps`.

    Raises:
        UserError: If the granularity is neither in `1 .. num_taps` nor a level.
        KrscaleError: If `stage_ends` do not increase up to `num_taps`.

    Example:
        >>> split_taps(2, 5, (1, 5)), split_taps("stage", 5, (1, 5))  # stages of 1 and 4 taps
        (((0, 3), (3, 5)), ((0, 1), (1, 5)))
    """
    if isinstance(granularity, str):
        if granularity not in LEVELS:
            raise unknown_name("granularity", granularity, LEVELS)
        if granularity == "stage":
            return _stages(num_taps, stage_ends)
        granularity = 1 if granularity == "network" else num_taps
    if isinstance(granularity, bool) or not 1 <= granularity <= num_taps:
        raise UserError(
            f"granularity {granularity!r} is out of range: the teacher has {num_taps} taps, so 1 "
            f"to {num_taps} is allowed, or a level: {', '.join(LEVELS)}."
        )
    ends = [_ceil_share(g, granularity, num_taps) for g in range(granularity + 1)]
    return tuple(itertools.pairwise(ends))


def student_tap(group: int, num_groups: int, num_student_taps: int) -> int:
    """Return the student's tap at the relative depth where a group of the teacher ends.

    Args:
        group: The group, counted from 1.
        num_groups: Number of groups of the teacher's taps.
        num_student_taps: Number of the student's taps, its classifier included.

    Returns:
        The tap, counted from 1; `num_student_taps` is the student's classifier.

    Example:
        >>> [student_tap(group, 3, 5) for group in (1, 2, 3)]  # the last meets the classifier
        [2, 4, 5]
    """
    return _ceil_share(group, num_groups, num_student_taps)


def merge_groups(groups: Groups, count: int) -> Groups:
    """Return `count` coarser groups of the same taps, joining near-equal numbers of neighbours.

    Args:
        groups: The groups.
        count: The number of groups to return, at most that of `groups`.

    Example:
        >>> merge_groups(((0, 2), (2, 4), (4, 6)), 2)
        ((0, 4), (4, 6))
    """
    parts = split_taps(count, len(groups), ())
    return tuple((groups[first][0], groups[last - 1][1]) for first, last in parts)


@dataclass(frozen=True)
class Depths:
    """The depths of the taps and stages of teacher and student; the classifier is the last tap.

    Attributes:
        stage_ends: For each stage of the teacher the 1-based number of its last tap.
        num_student_taps: Number of the student's taps.
        student_stage_ends: For each stage of the student the 1-based number of its last tap; empty
            if unknown.
    """

    stage_ends: tuple[int, ...]
    num_student_taps: int
    student_stage_ends: tuple[int, ...] = ()


def student_ends(groups: Groups, depths: Depths, alignment: str) -> tuple[int, ...]:
    """Return for each group of the teacher's taps the student's tap, from 1, where the group ends.

    With `"stage"`, a group that ends with a stage is matched to the end of the student's same
    stage, and one that ends within a stage to the same relative depth within the student's. If the
    networks have different numbers of stages, groups are matched by relative depth of the whole
    network, as with `"depth"`.

    Args:
        groups: The groups.
        depths: Taps and stages of both networks.
        alignment: One of `ALIGNMENTS`.

    Raises:
        UserError: If the alignment is unknown.

    Example:
        >>> depths = Depths((3, 6), 4, (1, 4))  # stages of 3 and 3 taps, and of 1 and 3
        >>> student_ends(((0, 3), (3, 5), (5, 6)), depths, "stage")
        (1, 3, 4)
        >>> student_ends(((0, 3), (3, 5), (5, 6)), depths, "depth")
        (2, 3, 4)
    """
    if alignment not in ALIGNMENTS:
        raise unknown_name("alignment", alignment, ALIGNMENTS)
    count, whole = len(groups), depths.num_student_taps
    if alignment == "depth" or len(depths.stage_ends) != len(depths.student_stage_ends):
        return tuple(student_tap(group, count, whole) for group in range(1, count + 1))
    of_both = (
        _stages(depths.stage_ends[-1], depths.stage_ends),
        _stages(whole, depths.student_stage_ends),
    )
    stages = list(zip(*of_both, strict=True))
    found = []
    for _, stop in groups:
        (start, end), (first, last) = next(both for both in stages if stop <= both[0][1])
        found.append(first + _ceil_share(stop - start, end - start, last - first))
    return tuple(found)


def tap_weights(information_gain: Tensor, groups: Groups) -> Tensor:
    """Return the share of every tap in every group, `[G, D]`: rows sum to 1.

    Within a group, a tap's share is proportional to its information gain. If no tap of a group has
    any, the group is represented by its deepest tap alone.

    Args:
        information_gain: `[D]`, not negative.
        groups: The groups of the `D` taps.

    Example:
        >>> tap_weights(torch.tensor([0.25, 0.75, 0.0, 0.0]), ((0, 2), (2, 4)))
        tensor([[0.2500, 0.7500, 0.0000, 0.0000],
                [0.0000, 0.0000, 0.0000, 1.0000]])
    """
    gains = information_gain.detach().double().cpu()
    weights = gains.new_zeros(len(groups), len(gains))
    for row, (start, stop) in zip(weights, groups, strict=True):
        total = gains[start:stop].sum()
        if total > 0:
            row[start:stop] = gains[start:stop] / total
        else:
            row[stop - 1] = 1.0
    return weights.to(torch.float32).to(information_gain.device)


def group_weights(information_gain: Tensor, groups: Groups) -> Tensor:
    """Return the weight of each group, `[G]` in `[0, 1]`: relative mean gain, 1 for the deepest.

    Mean gains are relative to the largest one, normally that of the deepest group. A shallower
    group may have the largest one, since an over-confident teacher can have a gain of 0 at its own
    classifier; no weight then exceeds 1 and nothing is divided by 0. The deepest group always has
    the weight 1.

    Args:
        information_gain: `[D]`, not negative.
        groups: The groups of the `D` taps.

    Example:
        >>> each = ((0, 1), (1, 2), (2, 3))
        >>> group_weights(torch.tensor([0.2, 0.4, 0.8]), each)
        tensor([0.2500, 0.5000, 1.0000])
        >>> group_weights(torch.tensor([0.5, 0.25, 0.0]), each)  # an over-confident classifier
        tensor([1.0000, 0.5000, 1.0000])
    """
    gains = information_gain.detach().double().cpu()
    means = torch.stack([gains[start:stop].mean() for start, stop in groups])
    weights = means / means.max() if means.max() > 0 else torch.zeros_like(means)
    weights[-1] = 1.0
    return weights.to(torch.float32).to(information_gain.device)


def joined_weights(information_gain: Tensor, groups: Groups, count: int) -> tuple[Tensor, Tensor]:
    """Return `tap_weights` and `group_weights` after joining the groups to `count` groups.

    A group that was joined to a deeper one gets the weight 0, and the deeper one gets the taps of
    both. The heads of the remaining groups do not change.

    Args:
        information_gain: `[D]`, not negative.
        groups: The `G` groups.
        count: The number of remaining groups, from 1 to `G`.

    Returns:
        `[G, D]` and `[G]`.

    Example:
        >>> each = ((0, 1), (1, 2), (2, 3), (3, 4))
        >>> of_taps, of_groups = joined_weights(torch.tensor([0.2, 0.2, 0.0, 0.8]), each, 2)
        >>> of_groups, of_taps[1]  # the second has the taps of the first two
        (tensor([0.0000, 0.5000, 0.0000, 1.0000]), tensor([0.5000, 0.5000, 0.0000, 0.0000]))
    """
    joined = merge_groups(groups, count)
    ends = [stop for _, stop in groups]
    places = [ends.index(stop) for _, stop in joined]
    whole = list(groups)
    for place, group in zip(places, joined, strict=True):
        whole[place] = group
    weights = information_gain.new_zeros(len(groups), dtype=torch.float32)
    weights[places] = group_weights(information_gain, joined)
    return tap_weights(information_gain, tuple(whole)), weights


def mix_taps(tap_logits: Tensor, weights: Tensor, temperature: float, mixing: str) -> Tensor:
    """Return the distribution of each group, `[B, G, K]`, from precomputed weights.

    Args:
        tap_logits: `[B, D, K]`, up to an additive constant per tap.
        weights: `[G, D]` from `tap_weights`.
        temperature: Temperature of the distributions.
        mixing: `"arithmetic"` or `"geometric"`.

    Raises:
        UserError: If `mixing` is neither.

    Example:
        >>> taps = torch.tensor([[[0.0, 0.0], [0.0, -1000.0]]])  # one tells nothing, one excludes
        >>> weights = torch.tensor([[0.5, 0.5]])
        >>> mix_taps(taps, weights, 1.0, "arithmetic"), mix_taps(taps, weights, 1.0, "geometric")
        (tensor([[[0.7500, 0.2500]]]), tensor([[[1., 0.]]]))
    """
    if mixing not in MIXINGS:
        raise unknown_name("mixing", mixing, MIXINGS)
    scaled = tap_logits.float() / temperature
    if mixing == "arithmetic":
        return torch.matmul(weights, scaled.softmax(dim=-1))
    return torch.matmul(weights, scaled).softmax(dim=-1)


def _ceil_share(part: int, parts: int, whole: int) -> int:
    """Return `ceil(part * whole / parts)` in integer arithmetic."""
    return -(-part * whole // parts)


def _stages(num_taps: int, stage_ends: Sequence[int]) -> Groups:
    groups = tuple(itertools.pairwise((0, *stage_ends)))
    rising = all(start < stop for start, stop in groups)
    if not groups or not rising or stage_ends[-1] != num_taps:
        raise KrscaleError(
            f"stage_ends {tuple(stage_ends)} must rise strictly and end at the last tap, {num_taps}"
        )
    return groups
