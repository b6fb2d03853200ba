"""Confidence intervals of means over seeds, and of accuracies."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy.special import ndtri, stdtrit  # type: ignore[import-untyped]

CONFIDENCE = 0.95


def half_width(values: Sequence[float]) -> float | None:
    """Return half the 95 % confidence interval of the mean (Student's t).

    `t_{n-1, 0.975} * s / sqrt(n)` with the sample standard deviation `s`, in the unit of `values`.
    None for fewer than two values, whose spread is unknown.

    Example:
        >>> half_width([0.95])
        >>> round(half_width([0.95, 0.96]), 3), round(half_width([0.95, 0.96] * 5), 3)
        (0.064, 0.004)
    """
    count = len(values)
    if count < 2:
        return None
    quantile = float(stdtrit(count - 1, 0.5 + CONFIDENCE / 2))
    return quantile * statistics.stdev(values) / math.sqrt(count)


def sampling_half_width(accuracy: float, num_images: int) -> float:
    """Return half the 95 % interval of an accuracy due to the sampling of test images.

    The test images are a sample. On the whole population the student's share of right answers
    differs, and lies within the interval. More seeds do not reveal this, as they all use the same
    images. It is Wilson's interval, whose width is not 0 even if all answers are right.

    Args:
        accuracy: Share of right answers.
        num_images: Number of images, at least one.

    Example:
        >>> round(sampling_half_width(0.95, 450), 3), round(sampling_half_width(1.0, 450), 3)
        (0.02, 0.004)
    """
    square = float(ndtri(0.5 + CONFIDENCE / 2)) ** 2
    within = accuracy * (1.0 - accuracy) / num_images + square / (4.0 * num_images**2)
    return math.sqrt(square * within) / (1.0 + square / num_images)
