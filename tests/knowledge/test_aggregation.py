"""Groups, their weights and their distributions, against hand-computed and float64 values."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from krscale.errors import KrscaleError, UserError
from krscale.knowledge.aggregation import (
    Depths,
    Groups,
    group_weights,
    joined_weights,
    merge_groups,
    mix_taps,
    split_taps,
    student_ends,
    student_tap,
    tap_weights,
)

GAINS = torch.tensor([0.1, 0.3, 0.0, 0.6, 0.5, 0.8])
GROUPS = ((0, 2), (2, 4), (4, 6))


def aggregate(
    tap_logits: Tensor,
    information_gain: Tensor,
    groups: Groups,
    temperature: float,
    mixing: str = "arithmetic",
) -> Tensor:
    """Return the distributions of all groups, as a training computes them."""
    return mix_taps(tap_logits, tap_weights(information_gain, groups), temperature, mixing)


@given(st.integers(1, 40).flatmap(lambda d: st.tuples(st.integers(1, d), st.just(d))))
def test_numbers_cut_into_contiguous_near_equal_groups(numbers: tuple[int, int]) -> None:
    granularity, num_taps = numbers
    groups = split_taps(granularity, num_taps, ())
    assert len(groups) == granularity
    assert [tap for start, stop in groups for tap in range(start, stop)] == list(range(num_taps))
    lengths = [stop - start for start, stop in groups]
    assert max(lengths) - min(lengths) <= 1


def test_levels() -> None:
    assert split_taps("network", 6, (2, 4, 6)) == ((0, 6),)
    assert split_taps("stage", 6, (1, 5, 6)) == ((0, 1), (1, 5), (5, 6))
    assert split_taps("layer", 3, (2, 3)) == ((0, 1), (1, 2), (2, 3))
    assert split_taps(1, 6, (2, 4, 6)) == split_taps("network", 6, (2, 4, 6))


@pytest.mark.parametrize("granularity", [0, -1, 7, True])
def test_out_of_range_names_the_range_and_the_levels(granularity: int) -> None:
    with pytest.raises(UserError, match=r"1 to 6 is allowed, or a level: network, stage, layer"):
        split_taps(granularity, 6, (2, 4, 6))


def test_unknown_level_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'stage'"):
        split_taps("stages", 6, (2, 4, 6))


@pytest.mark.parametrize("stage_ends", [(), (2, 4), (2, 2, 6), (4, 2, 6), (0, 6), (3, 7)])
def test_stage_ends_must_rise_to_the_last_tap(stage_ends: tuple[int, ...]) -> None:
    with pytest.raises(KrscaleError, match="stage_ends"):
        split_taps("stage", 6, stage_ends)


def test_student_tap_is_at_the_same_relative_depth() -> None:
    assert [student_tap(g, 6, 3) for g in range(1, 7)] == [1, 1, 2, 2, 3, 3]
    assert [student_tap(g, 2, 3) for g in (1, 2)] == [2, 3]
    assert [student_tap(g, 3, 1) for g in (1, 2, 3)] == [1, 1, 1]


@given(st.integers(1, 20), st.integers(1, 20))
def test_student_taps_rise_to_the_classifier(num_groups: int, num_student_taps: int) -> None:
    taps = [student_tap(g, num_groups, num_student_taps) for g in range(1, num_groups + 1)]
    assert taps == [math.ceil(g * num_student_taps / num_groups) for g in range(1, num_groups + 1)]
    assert taps == sorted(taps)
    assert taps[0] >= 1
    assert taps[-1] == num_student_taps


def test_tap_weights_by_hand() -> None:
    expected = torch.tensor(
        [[0.25, 0.75, 0, 0, 0, 0], [0, 0, 0, 1.0, 0, 0], [0, 0, 0, 0, 5 / 13, 8 / 13]]
    )
    torch.testing.assert_close(tap_weights(GAINS, GROUPS), expected)


def test_group_weights_by_hand() -> None:
    expected = torch.tensor([0.2 / 0.65, 0.3 / 0.65, 1.0])
    torch.testing.assert_close(group_weights(GAINS, GROUPS), expected)


def test_taps_that_know_nothing_do_not_teach() -> None:
    gains = torch.tensor([0.0, 0.0, 0.5])
    groups = ((0, 2), (2, 3))
    assert group_weights(gains, groups).tolist() == [0.0, 1.0]
    assert tap_weights(gains, groups).tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


@pytest.mark.parametrize("last", [0.0, 1e-9, 0.2])
def test_an_uninformed_classifier_is_safe(last: float) -> None:
    gains = torch.tensor([0.4, 0.8, last])
    weights = group_weights(gains, ((0, 1), (1, 2), (2, 3)))
    assert weights.tolist() == pytest.approx([0.5, 1.0, 1.0])
    none = group_weights(torch.zeros(3), ((0, 2), (2, 3)))
    assert none.tolist() == [0.0, 1.0]
    assert tap_weights(torch.zeros(3), ((0, 3),)).tolist() == [[0.0, 0.0, 1.0]]


def reference(tap_logits: Tensor, temperature: float, mixing: str) -> Tensor:
    rows = []
    for start, stop in GROUPS:
        gains = GAINS[start:stop].double().view(1, -1, 1)
        part = tap_logits[:, start:stop].double() / temperature
        if mixing == "arithmetic":
            rows.append((gains * part.softmax(dim=-1)).sum(dim=1) / gains.sum())
        else:
            rows.append(((gains * part).sum(dim=1) / gains.sum()).softmax(dim=-1))
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("mixing", ["arithmetic", "geometric"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_aggregate_equals_float64(mixing: str, temperature: float) -> None:
    logits = 5 * torch.randn(7, 6, 11, generator=torch.Generator().manual_seed(0))
    said = aggregate(logits, GAINS, GROUPS, temperature, mixing)
    assert said.dtype == torch.float32
    torch.testing.assert_close(
        said, reference(logits, temperature, mixing).float(), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("mixing", ["arithmetic", "geometric"])
def test_aggregate_is_a_distribution_whatever_the_constants(mixing: str) -> None:
    logits = 5 * torch.randn(7, 6, 11, generator=torch.Generator().manual_seed(0))
    said = aggregate(logits, GAINS, GROUPS, 4.0, mixing)
    torch.testing.assert_close(said.sum(dim=-1), torch.ones(7, 3))
    shifted = aggregate(logits + 100 * torch.arange(6).view(1, 6, 1), GAINS, GROUPS, 4.0, mixing)
    torch.testing.assert_close(shifted, said, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("mixing", ["arithmetic", "geometric"])
@pytest.mark.parametrize("scale", [1e4, 1e8])
def test_aggregate_is_finite(mixing: str, scale: float) -> None:
    logits = scale * torch.randn(7, 6, 11, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(aggregate(logits, GAINS, GROUPS, 1.0, mixing)).all()
    assert torch.isfinite(aggregate(logits.bfloat16(), GAINS, GROUPS, 1.0, mixing)).all()


def test_one_tap_groups_say_what_their_taps_say() -> None:
    logits = torch.randn(3, 6, 5)
    groups = split_taps("layer", 6, ())
    torch.testing.assert_close(aggregate(logits, GAINS, groups, 4.0), (logits / 4).softmax(dim=-1))


def test_empty_batch_and_unknown_mixing() -> None:
    assert aggregate(torch.zeros(0, 6, 5), GAINS, GROUPS, 4.0).shape == (0, 3, 5)
    with pytest.raises(UserError, match="Did you mean 'geometric'"):
        aggregate(torch.zeros(1, 6, 5), GAINS, GROUPS, 4.0, "geometrical")


@pytest.mark.parametrize(
    ("student_ends_", "granularity", "ends"),
    [
        ((1, 2, 3), "stage", (1, 2, 3)),  # one block a stage
        ((3, 7, 9), "stage", (3, 7, 9)),
        ((3, 7, 9), "layer", (2, 3, 5, 7, 8, 9)),
        ((1, 2, 3), "layer", (1, 1, 2, 2, 3, 3)),
        ((3, 7, 9), 2, (5, 9)),  # ends halfway through the second stage
        ((3, 7, 9), "network", (9,)),
    ],
)
def test_stages_meet_stages(
    student_ends_: tuple[int, ...], granularity: int | str, ends: tuple[int, ...]
) -> None:
    groups = split_taps(granularity, 6, (2, 4, 6))
    depths = Depths((2, 4, 6), student_ends_[-1], student_ends_)
    assert student_ends(groups, depths, "stage") == ends


def test_networks_of_other_stages_meet_at_relative_depth() -> None:
    groups = split_taps("stage", 6, (2, 4, 6))
    by_depth = tuple(student_tap(group, 3, 8) for group in (1, 2, 3))
    for student_stages in ((4, 8), (), (1, 2, 3, 8)):
        depths = Depths((2, 4, 6), 8, student_stages)
        assert student_ends(groups, depths, "stage") == by_depth
    assert student_ends(groups, Depths((2, 4, 6), 8, (1, 2, 8)), "depth") == by_depth
    with pytest.raises(UserError, match=r"unknown alignment 'stages'\. Did you mean 'stage'"):
        student_ends(groups, Depths((2, 4, 6), 8), "stages")


@given(st.data())
def test_ends_never_fall_and_the_last_is_the_classifier(data: st.DataObject) -> None:
    def stages(count: int, most: int) -> tuple[int, ...]:
        lengths = data.draw(st.lists(st.integers(1, most), min_size=count, max_size=count))
        return tuple(torch.tensor(lengths).cumsum(0).tolist())

    count = data.draw(st.integers(1, 4))
    teacher, student = stages(count, 6), stages(data.draw(st.sampled_from([count, 2])), 6)
    granularity = data.draw(st.integers(1, teacher[-1]))
    groups = split_taps(granularity, teacher[-1], teacher)
    for alignment in ("stage", "depth"):
        ends = student_ends(groups, Depths(teacher, student[-1], student), alignment)
        assert len(ends) == len(groups)
        assert list(ends) == sorted(ends)
        assert ends[0] >= 1
        assert ends[-1] == student[-1]
        if alignment == "stage" and len(teacher) == len(student):
            for (_, stop), end in zip(groups, ends, strict=True):
                assert (stop in teacher) <= (end in student)


def test_groups_are_joined_to_near_equally_many() -> None:
    groups = split_taps("layer", 5, (5,))
    assert merge_groups(groups, 5) == groups
    assert merge_groups(groups, 3) == ((0, 2), (2, 4), (4, 5))
    assert merge_groups(groups, 1) == split_taps("network", 5, (5,))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_weights_of_what_is_left_stand_where_its_deepest_groups_stood(count: int) -> None:
    gains, groups = torch.tensor([0.1, 0.3, 0.5, 0.8]), ((0, 2), (2, 3), (3, 4))
    shares, weights = joined_weights(gains, groups, count)
    left = merge_groups(groups, count)
    places = [[stop for _, stop in groups].index(stop) for _, stop in left]
    assert shares.shape == (3, 4)
    assert torch.equal(shares[places], tap_weights(gains, left))
    assert torch.equal(weights[places], group_weights(gains, left))
    gone = [place for place in range(3) if place not in places]
    assert torch.equal(weights[gone], torch.zeros(len(gone)))
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(3))
    assert weights[-1] == 1.0
