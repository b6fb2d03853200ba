import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krscale.pareto import pareto_front

# (parameters, accuracy): fewer parameters, more accuracy.
CURVE = [(100, 0.6), (200, 0.7), (150, 0.5), (400, 0.7), (800, 0.9), (100, 0.6)]


def test_front_of_a_curve_by_hand():
    assert pareto_front(CURVE, [False, True]) == [0, 1, 4, 5]


def test_all_goals_maximised():
    assert pareto_front(CURVE, [True, True]) == [4]


def test_no_points_no_front():
    assert pareto_front([], [True]) == []


def test_infinite_values_are_comparable():
    assert pareto_front([(math.inf,), (3.0,)], [False]) == [1]


@pytest.mark.parametrize("point", [(1.0,), (1.0, 2.0, 3.0), (1.0, math.nan)])
def test_points_that_cannot_be_compared(point):
    with pytest.raises(ValueError, match="2 goals need"):
        pareto_front([(1.0, 2.0), point], [True, False])


@given(
    st.lists(st.tuples(*[st.integers(0, 4)] * 3), max_size=30),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_front_is_what_the_definition_says(points, maximise):
    def dominates(a, b):
        better = [x > y if more else x < y for x, y, more in zip(a, b, maximise, strict=True)]
        worse = [x < y if more else x > y for x, y, more in zip(a, b, maximise, strict=True)]
        return any(better) and not any(worse)

    expected = [i for i, p in enumerate(points) if not any(dominates(q, p) for q in points)]
    assert pareto_front(points, maximise) == expected
