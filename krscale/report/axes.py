"""The axes of the figures: the range of the data, and labels that do not overlap.

The printed figure and the interactive page use the same rules, so that both show the same range.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from krscale.report.interval import half_width
from krscale.report.result import Curve
from krscale.report.students import CurveSize, MethodResult

_PADDING = 0.06
"""Share of the data's span that is left empty on each side."""
_LEAST_POINTS = 0.5
"""Minimum number of percentage points left empty on each side."""
_LEAST_FACTOR = 1.15
"""Minimum factor left empty on each side of the sizes."""
_LABEL_SHARE = 0.09
"""Share of the axis that a label takes; labels closer than this would overlap."""


def finished(curve: Curve, method: str) -> list[tuple[CurveSize, MethodResult]]:
    """Return the sizes at which a method has a finished student, with results, smallest first."""
    found = [
        (size, result)
        for size in curve.sizes
        if (result := size.methods.get(method)) and result.test_accuracy is not None
    ]
    return sorted(found, key=lambda entry: entry[0].size_of(method).num_parameters)


def percent(result: MethodResult) -> float:
    """Return the mean test accuracy of a finished student in percent."""
    return 100 * (result.test_accuracy or 0.0)


def bars(results: Sequence[MethodResult]) -> tuple[list[float], list[float]]:
    """Return how far the 95 % intervals reach below and above the means, in percentage points.

    They are cut off at 0 and 100 %. Fewer seeds give wider intervals.
    """
    below, above = [], []
    for result in results:
        width = 100 * (half_width(result.test_accuracies) or 0.0)
        below.append(min(width, percent(result)))
        above.append(min(width, 100 - percent(result)))
    return below, above


def accuracy_range(curves: Sequence[Curve]) -> tuple[float, float]:
    """Return the limits of an axis of test accuracy in percent.

    They include all means, their intervals and the teachers, with some margin, but do not exceed 0
    and 100.
    """
    values = [100 * curve.teacher["test_accuracy"] for curve in curves]
    for curve in curves:
        for method in curve.methods:
            results = [result for _, result in finished(curve, method)]
            for result, below, above in zip(results, *bars(results), strict=True):
                values += [percent(result) - below, percent(result) + above]
    low, high = min(values, default=0.0), max(values, default=100.0)
    room = max(_PADDING * (high - low), _LEAST_POINTS)
    return max(0.0, low - room), min(100.0, high + room)


def size_range(sizes: Iterable[float]) -> tuple[float, float]:
    """Return the limits of a logarithmic axis of sizes, in their unit, with a margin.

    Sizes of 0, which a logarithmic axis cannot show, are ignored.
    """
    logs = [math.log(size) for size in sizes if size > 0]
    low, high = min(logs, default=0.0), max(logs, default=math.log(10.0))
    room = max(_PADDING * (high - low), math.log(_LEAST_FACTOR))
    return math.exp(low - room), math.exp(high + room)


def names_of_sizes(curves: Sequence[Curve], field: str) -> dict[float, str]:
    """Return the names of the students of each size, as labels of an axis.

    Args:
        curves: Results of searches.
        field: Field of a size: `num_parameters`, `flops` or `latency_ms`.

    Returns:
        Size -> name; the names of students of equal size are joined, such as `tiny, flat`.
    """
    found: dict[float, dict[str, None]] = {}
    for curve in curves:
        for size in curve.sizes:
            for own, _ in size.by_student():
                found.setdefault(getattr(own, field), {})[size.capacity] = None
    return {value: ", ".join(names) for value, names in found.items()}


def marked(sizes: Iterable[float], ends: tuple[float, float]) -> list[float]:
    """Return the sizes that are labelled on a logarithmic axis: all for which there is room.

    Args:
        sizes: Sizes of students.
        ends: Limits of the axis, see `size_range`.

    Example:
        >>> marked([1000, 1050, 4000, 16000], ends=(900, 18000))  # the second has no room
        [1000, 4000, 16000]
    """
    gap = _LABEL_SHARE * math.log(ends[1] / ends[0])
    shown: list[float] = []
    for size in sorted({size for size in sizes if size > 0}):
        if not shown or math.log(size / shown[-1]) >= gap:
            shown.append(size)
    return shown
