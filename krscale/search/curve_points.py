"""The curves of a method as metrics of MLflow, each point with the size of its student as step."""

from __future__ import annotations

from collections.abc import Iterator

from krscale.metrics import VAL_ACCURACY
from krscale.report import Curve, CurveSize, MethodResult

MICROSECONDS = 1000
"""Factor from milliseconds: MLflow needs integer steps, so latency is plotted in microseconds."""
_AXES = {"": "num_parameters", "_by_flops": "flops", "_by_latency": "latency_ms"}
"""Suffix of a chart's key -> the size that is used as its step."""
_PREFIXES = ("curve", "front", "size/")


def curve_points(curve: Curve, method: str) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield the points of a method's curves with their steps; all methods have the same keys.

    Args:
        curve: The result of the search.
        method: One of its methods.
    """
    for size in curve.sizes:
        if (result := size.methods.get(method)) is not None:
            yield from _of_student(size, method, result)
            yield from _of_front(result)


def is_of_curves(name: str) -> bool:
    """Return whether `curve_points` yields metrics of this name.

    Example:
        >>> is_of_curves("curve_by_flops/test_accuracy"), is_of_curves("best_val_accuracy")
        (True, False)
    """
    return name.startswith(_PREFIXES)


def _of_student(
    size: CurveSize, method: str, result: MethodResult
) -> Iterator[tuple[int, dict[str, float]]]:
    if result.test_accuracy is None or result.val_accuracy is None:
        return
    own = size.size_of(method)
    for suffix, name in _AXES.items():
        point = {
            f"curve{suffix}/test_accuracy": result.test_accuracy,
            f"curve{suffix}/val_accuracy": result.val_accuracy,
        }
        yield _step(name, getattr(own, name)), point
    sizes = {"size/flops": float(own.flops), "size/latency_ms": own.latency_ms}
    yield own.num_parameters, sizes


def _of_front(result: MethodResult) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield the trials that no other beats, as one curve per objective."""
    for found in result.front:
        accuracy = found.objectives[VAL_ACCURACY]
        for suffix, name in _AXES.items():
            if name in found.objectives:
                yield _step(name, found.objectives[name]), {f"front{suffix}/val_accuracy": accuracy}


def _step(size: str, value: float) -> int:
    return round(MICROSECONDS * value if size == "latency_ms" else value)
