"""Measures of the claims: means over pairs of seeds, steps to an accuracy, verdicts. Pure.

Two trainings are paired when they share a seed: the same images in the same order, and for
students of the same method also the same initial weights.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from scipy.special import stdtrit  # type: ignore[import-untyped]

from krscale.report.interval import half_width

Verdict = Literal["holds", "does not hold", "undecided", "not measured"]


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its 95 % interval (Student's t); infinite without a second seed."""

    mean: float
    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float]) -> Interval:
        """Return the mean of at least one value and its interval."""
        mean = math.fsum(values) / len(values)
        half = half_width(values)
        half = math.inf if half is None else half
        return cls(mean, mean - half, mean + half)

    def above(self, bound: float) -> Verdict:
        """Return whether the mean is above the bound, as far as the interval shows."""
        if self.low > bound:
            return "holds"
        return "does not hold" if self.high < bound else "undecided"

    def below(self, bound: float) -> Verdict:
        """Return whether the mean is below the bound, as far as the interval shows."""
        if self.high < bound:
            return "holds"
        return "does not hold" if self.low > bound else "undecided"

    def to_json(self) -> dict[str, float | None]:
        """Return it as JSON; an infinite end is null."""
        return {k: v if math.isfinite(v) else None for k, v in asdict(self).items()}


@dataclass(frozen=True)
class Spread:
    """The variance between winners of independent searches of a method, pooled over methods.

    Attributes:
        variance: Variance of the mean test accuracy of a search's winner.
        degrees: Degrees of freedom of that estimate: searches beyond the first, summed.
    """

    variance: float
    degrees: int

    @classmethod
    def over(cls, search_means: Sequence[Sequence[float]]) -> Spread | None:
        """Return the pooled spread of several methods, one list each; None without a second search.

        >>> Spread.over([[0.5, 0.7], [0.1, 0.1], [0.3]])
        Spread(variance=0.01, degrees=2)
        """
        again = [means for means in search_means if len(means) > 1]
        degrees = sum(len(means) - 1 for means in again)
        if not degrees:
            return None
        squares = math.fsum((len(means) - 1) * statistics.variance(means) for means in again)
        return cls(round(squares / degrees, 12), degrees)

    def around(self, mean: float, num_searches: int) -> Interval:
        """Return the 95 % interval of the difference of two methods with so many searches each."""
        quantile = float(stdtrit(self.degrees, 0.975))
        half = quantile * math.sqrt(2 * self.variance / num_searches)
        return Interval(mean, mean - half, mean + half)


def both(one: Verdict, other: Verdict) -> Verdict:
    """Return the verdict of two intervals; `undecided` if they differ."""
    return one if one == other else "undecided"


def differences(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """Return ours minus theirs, one for each seed that both have, in the order of the seeds."""
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def steps_to(curve: Sequence[float], target: float, steps_per_epoch: int) -> float | None:
    """Return the first step at which a training is at least as accurate as `target`.

    Between the ends of two epochs the accuracy is interpolated linearly. Before the end of the
    first epoch nothing is known, so an accuracy reached there counts as reached at its end.

    Args:
        curve: Validation accuracy at the end of every epoch.
        target: Accuracy to reach.
        steps_per_epoch: Optimiser steps of an epoch.

    Returns:
        The steps, or None if the accuracy is never reached.
    """
    if not curve:
        return None
    if curve[0] >= target:
        return float(steps_per_epoch)
    for epoch, (before, after) in enumerate(itertools.pairwise(curve), start=1):
        if after >= target:
            return (epoch + (target - before) / (after - before)) * steps_per_epoch
    return None


@dataclass(frozen=True)
class Speed:
    """How soon one method reaches the final accuracy of another, as shares of the other's steps.

    Attributes:
        ratios: One per pair of seeds. A student that never gets there counts with all the steps it
            made, which is less than it would have needed.
        num_censored: How many of them never got there.
    """

    ratios: tuple[float, ...]
    num_censored: int

    @property
    def interval(self) -> Interval:
        """Mean ratio over the seeds; a lower bound when any student never got there."""
        return Interval.over(self.ratios)

    @property
    def verdict(self) -> Verdict:
        """Whether the method is the faster one; never `holds` when a student did not get there."""
        judged = self.interval.below(1.0)
        return "undecided" if judged == "holds" and self.num_censored else judged

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            **self.interval.to_json(),
            "ratios": [round(ratio, 4) for ratio in self.ratios],
            "num_censored": self.num_censored,
        }


Curves = Mapping[int, Sequence[float]]
"""Validation accuracy at the end of every epoch, by seed."""


def steps_to_final(ours: Curves, theirs: Curves, steps_per_epoch: int) -> dict[int, float | None]:
    """Return, by seed, our steps to the accuracy with which their training of that seed ended."""
    return {
        seed: steps_to(ours[seed], theirs[seed][-1], steps_per_epoch)
        for seed in sorted(ours.keys() & theirs.keys())
    }


def speed(ours: Curves, theirs: Curves, steps_per_epoch: int) -> Speed:
    """Return our steps to their final accuracy over their own steps to it, paired by seed."""
    own = steps_to_final(theirs, theirs, steps_per_epoch)
    found = steps_to_final(ours, theirs, steps_per_epoch)
    ratios = []
    for seed, steps in found.items():
        their_steps = own[seed]
        assert their_steps is not None  # noqa: S101 (a curve reaches its own end)
        all_steps = float(len(ours[seed]) * steps_per_epoch)
        ratios.append((all_steps if steps is None else steps) / their_steps)
    return Speed(tuple(ratios), sum(steps is None for steps in found.values()))


def overall(verdicts: Sequence[Verdict]) -> str:
    """Summarise the verdicts of the sizes in words."""
    if not verdicts:
        return "not measured"
    counts = {v: verdicts.count(v) for v in ("holds", "does not hold", "undecided")}
    for verdict, count in counts.items():
        if count == len(verdicts):
            return f"{verdict} at every size" if len(verdicts) > 1 else verdict
    parts = [f"{verdict} at {n} of {len(verdicts)} sizes" for verdict, n in counts.items() if n]
    return ", ".join(parts)


def deepest_third(residual: Sequence[float]) -> float:
    """Return the mean residual over the deepest third of the depths, at least the last one."""
    count = max(1, len(residual) // 3)
    return math.fsum(residual[-count:]) / count
