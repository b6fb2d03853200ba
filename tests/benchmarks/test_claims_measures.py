from __future__ import annotations

import math

import pytest
from parts.claims.measures import (
    Interval,
    Speed,
    Spread,
    both,
    deepest_third,
    differences,
    overall,
    speed,
    steps_to,
)


def test_the_interval_of_three_values_is_students_t_by_hand() -> None:
    # mean 2, s = 1, t_{2, 0.975} = 4.302653: half width 4.302653 / sqrt(3) = 2.484138.
    interval = Interval.over([1.0, 2.0, 3.0])
    assert interval.mean == pytest.approx(2.0)
    assert interval.low == pytest.approx(2.0 - 2.484138, abs=1e-6)
    assert interval.high == pytest.approx(2.0 + 2.484138, abs=1e-6)


def test_one_seed_leaves_the_interval_open_and_nothing_decided() -> None:
    interval = Interval.over([0.5])
    assert (interval.low, interval.high) == (-math.inf, math.inf)
    assert interval.above(0.0) == interval.below(0.0) == "undecided"
    assert interval.to_json() == {"mean": 0.5, "low": None, "high": None}


@pytest.mark.parametrize(
    ("low", "high", "above", "below"),
    [
        (0.1, 0.3, "holds", "does not hold"),
        (-0.3, -0.1, "does not hold", "holds"),
        (-0.1, 0.1, "undecided", "undecided"),
        (0.0, 0.2, "undecided", "undecided"),
    ],
)
def test_a_verdict_needs_the_whole_interval_on_one_side(
    low: float, high: float, above: str, below: str
) -> None:
    interval = Interval((low + high) / 2, low, high)
    assert interval.above(0.0) == above
    assert interval.below(0.0) == below


def test_differences_pair_by_seed_and_leave_out_what_has_no_partner() -> None:
    ours = {1002: 0.7, 1000: 0.5, 1003: 0.9}
    theirs = {1000: 0.4, 1001: 0.1, 1002: 0.8}
    assert differences(ours, theirs) == pytest.approx([0.1, -0.1])


@pytest.mark.parametrize(
    ("curve", "target", "steps"),
    [
        ([0.2, 0.4, 0.6], 0.5, 25.0),  # halfway between epochs 2 and 3 of 10 steps
        ([0.2, 0.4, 0.6], 0.6, 30.0),
        ([0.2, 0.4, 0.6], 0.1, 10.0),  # within the first epoch: nothing is known before its end
        ([0.2, 0.4, 0.6], 0.7, None),
        ([0.2, 0.6, 0.3, 0.9], 0.5, 17.5),  # the first time counts, though it falls back
        ([], 0.5, None),
    ],
)
def test_steps_to_an_accuracy(curve: list[float], target: float, steps: float | None) -> None:
    assert steps_to(curve, target, 10) == (None if steps is None else pytest.approx(steps))


def test_speed_is_paired_and_counts_who_never_got_there() -> None:
    theirs = {1: [0.2, 0.4], 2: [0.5, 0.8]}  # both reach their own end after 20 steps
    ours = {1: [0.4, 0.6], 2: [0.5, 0.6]}  # seed 1 after 10, seed 2 never within 20
    found = speed(ours, theirs, 10)
    assert found == Speed((0.5, 1.0), 1)


def test_a_student_that_never_got_there_keeps_speed_from_being_proven() -> None:
    assert Speed((0.5, 0.51, 0.52), 0).verdict == "holds"
    assert Speed((0.5, 0.51, 0.52), 1).verdict == "undecided"
    assert Speed((1.5, 1.51, 1.52), 1).verdict == "does not hold"


def test_verdicts_are_summed_up_in_words() -> None:
    assert overall([]) == "not measured"
    assert overall(["holds"]) == "holds"
    assert overall(["holds", "holds"]) == "holds at every size"
    assert (
        overall(["holds", "undecided", "undecided"])
        == "holds at 1 of 3 sizes, undecided at 2 of 3 sizes"
    )


@pytest.mark.parametrize(
    ("residual", "expected"),
    [([6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 1.5), ([3.0, 2.0, 1.0], 1.0), ([2.0, 1.0], 1.0)],
)
def test_the_deepest_third(residual: list[float], expected: float) -> None:
    assert deepest_third(residual) == pytest.approx(expected)


def test_the_spread_of_searches_is_pooled_over_methods_by_hand() -> None:
    spread = Spread.over([[0.50, 0.54], [0.60, 0.60], [0.70]])
    assert spread is not None
    assert spread.degrees == 2
    assert spread.variance == pytest.approx(0.0008 / 2)
    found = spread.around(0.05, num_searches=2)
    half = 4.302653 * math.sqrt(2 * 0.0004 / 2)  # t of 2 degrees of freedom
    assert (found.low, found.high) == pytest.approx((0.05 - half, 0.05 + half))
    assert Spread.over([[0.5], [0.6]]) is None


def test_two_intervals_must_agree() -> None:
    assert both("holds", "holds") == "holds"
    assert both("holds", "undecided") == both("does not hold", "holds") == "undecided"
