"""How sure a mean over seeds is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy.special import stdtrit  # type: ignore[import-untyped]

CONFIDENCE = 0.95


def half_width(values: Sequence[float]) -> float | None:
    """Return half the 95 % confidence interval of the mean (Student's t).

    `t_{n-1, 0.975} * s / sqrt(n)` with the sample standard deviation `s`; in the unit of `values`.
    None for fewer than two values, which say nothing about their spread.
    """
    count = len(values)
    if count < 2:
        return None
    quantile = float(stdtrit(count - 1, 0.5 + CONFIDENCE / 2))
    return quantile * statistics.stdev(values) / math.sqrt(count)
