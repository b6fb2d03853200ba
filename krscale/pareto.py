"""The Pareto front: the candidates that no other candidate dominates."""

from __future__ import annotations

import math
from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, ...]], maximise: Sequence[bool]) -> list[int]:
    """Return the indices, in ascending order, of the points that no other point dominates.

    A point dominates another if it is at least as good in every goal and better in one. Equal
    points do not dominate each other, so all of them stay.

    Args:
        points: One tuple of values for each candidate, one value for each goal.
        maximise: For each goal, whether larger is better.

    Raises:
        ValueError: If the number of values of a point is not the number of goals, or one is NaN.

    Example:
        >>> accuracy_and_size = [(0.90, 100), (0.95, 400), (0.89, 200), (0.90, 100)]
        >>> pareto_front(accuracy_and_size, maximise=(True, False))  # of equal points all stay
        [0, 1, 3]
    """
    for point in points:
        if len(point) != len(maximise) or any(math.isnan(value) for value in point):
            raise ValueError(f"{len(maximise)} goals need as many comparable values: {point}")
    costs = [
        tuple(-value if more else value for value, more in zip(point, maximise, strict=True))
        for point in points
    ]
    front: list[int] = []
    # A point that dominates another precedes it in lexicographic order. A point that is dominated
    # by a discarded point is also dominated by the point that discarded it, so comparing with the
    # front so far suffices.
    for index in sorted(range(len(costs)), key=costs.__getitem__):
        if not any(_dominates(costs[kept], costs[index]) for kept in front):
            front.append(index)
    return sorted(front)


def _dominates(better: tuple[float, ...], worse: tuple[float, ...]) -> bool:
    return better != worse and all(b <= w for b, w in zip(better, worse, strict=True))
