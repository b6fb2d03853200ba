"""Choosing a student of a finished search by validation accuracy and size, never by test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from krscale.errors import UserError
from krscale.report.interval import half_width
from krscale.report.result import Curve
from krscale.report.students import CurveSize, MethodResult, rounded_mean
from krscale.report.table import short_latency

_SIZES = ("num_parameters", "flops", "latency_ms")


@dataclass(frozen=True)
class Limits:
    """The limits that the user set; None for no limit.

    Attributes:
        num_parameters: Maximum number of parameters of the student.
        flops: Maximum number of operations of one forward of one image, 2 per multiply-add.
        latency_ms: Maximum milliseconds for one image on one CPU thread, as measured by the search.
        min_accuracy: Minimum validation accuracy, a share in [0, 1].

    Example:
        >>> Limits(num_parameters=20_000, min_accuracy=0.95).describe()
        'at most 20,000 parameters and at least 95.0 % on validation'
    """

    num_parameters: int | None = None
    flops: int | None = None
    latency_ms: float | None = None
    min_accuracy: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.on_sizes.items():
            least = "more than 0" if name == "latency_ms" else "at least 1"
            if not (value > 0 if name == "latency_ms" else value >= 1):  # NaN is neither
                raise UserError(f"a limit of {name}: expected {least} (got {value!r}).")

    @property
    def on_sizes(self) -> dict[str, float]:
        """The limits on sizes, by the name of the size's field."""
        found = {name: getattr(self, name) for name in _SIZES}
        return {name: value for name, value in found.items() if value is not None}

    def describe(self) -> str:
        """Return the limits in words: `at most 20,000 parameters and 95.0 % on validation`."""
        parts = [f"at most {_size(name, value)}" for name, value in self.on_sizes.items()]
        if self.min_accuracy is not None:
            parts.append(f"at least {_percent(self.min_accuracy)} % on validation")
        return " and ".join(parts)


@dataclass(frozen=True)
class Candidate:
    """One student of the curve: a method's winner at a size."""

    size: CurveSize
    method: str
    result: MethodResult

    @property
    def name(self) -> str:
        """Name in texts: `kr at 1/16`."""
        return f"{self.method} at {self.size.capacity}"

    @property
    def val_accuracy(self) -> float:
        """Mean validation accuracy over the final seeds."""
        if self.result.val_accuracy is None:
            raise ValueError(f"{self.name} has no finished training")
        return self.result.val_accuracy

    @property
    def best_seed(self) -> int:
        """Index of the final training with the best validation accuracy; the first of equals."""
        values = self.result.val_accuracies
        return max(range(len(values)), key=values.__getitem__)

    def measure(self, name: str) -> float:
        """Return `num_parameters`, `flops` or `latency_ms`."""
        return float(getattr(self.size.size_of(self.method), name))

    def describe(self) -> str:
        """Return sizes and validation accuracy in words."""
        sizes = ", ".join(_size(name, self.measure(name)) for name in _SIZES)
        return f"{self.name}: {sizes}; {100 * self.val_accuracy:.1f} % on validation"

    def facts(self) -> dict[str, Any]:
        """Return its size, method and accuracy for programs."""
        return {
            "capacity": self.size.capacity,
            "method": self.method,
            **self.size.size_of(self.method).model_dump(include=set(_SIZES)),
            "val_accuracy": self.val_accuracy,
        }


@dataclass(frozen=True)
class Choice:
    """The chosen student, with reasons.

    Attributes:
        picked: The chosen student.
        runner_up: The next best student within the limits, if any.
        reasons: Lines of text.
    """

    picked: Candidate
    runner_up: Candidate | None
    reasons: tuple[str, ...]


def choose(curve: Curve, limits: Limits) -> Choice:
    """Choose the best student within the limits.

    With limits on sizes only, it is the most accurate on validation; of equally accurate students
    the smallest. With `min_accuracy`, it is the smallest student that reaches it, by the size that
    was limited or else by parameters; of equally small students the most accurate. In both cases,
    no other student within the limits is better in one of these and at least as good in the others:
    the choice is on the Pareto front.

    Raises:
        UserError: If no limit is given, if the search has no finished student, or if none is within
            the limits (the message names the nearest).
    """
    candidates = find_candidates(curve)
    if not limits.on_sizes and limits.min_accuracy is None:
        raise UserError(
            "a limit is needed: --max-params, --max-flops, --max-latency-ms or --min-accuracy."
        )
    feasible = [candidate for candidate in candidates if _fits(candidate, limits)]
    feasible.sort(key=lambda candidate: preference(candidate, limits))
    if not feasible:
        raise _impossible(candidates, limits)
    picked, runner_up = feasible[0], feasible[1] if len(feasible) > 1 else None
    reasons = [_reason(limits, len(feasible), len(candidates))]
    if runner_up:
        reasons.append(_compare(picked, runner_up))
    return Choice(picked, runner_up, tuple(reasons))


def find_candidates(curve: Curve) -> list[Candidate]:
    """Return every student of the curve whose trainings are finished.

    Raises:
        UserError: If there is no such student.
    """
    found = [
        Candidate(size, method, result)
        for size in curve.sizes
        for method, result in size.methods.items()
        if result.val_accuracy is not None
    ]
    if not found:
        sizes = ", ".join(size.capacity for size in curve.sizes) or "no size"
        raise UserError(f"run {curve.name!r} has no finished student (sizes: {sizes}).")
    return found


def _fits(candidate: Candidate, limits: Limits) -> bool:
    least = limits.min_accuracy
    enough = least is None or candidate.val_accuracy >= rounded_mean(least)  # rounded as the means
    return enough and all(
        candidate.measure(name) <= limit for name, limit in limits.on_sizes.items()
    )


def _violation(candidate: Candidate, limits: Limits) -> float:
    """Return the factor by which the worst limit is exceeded."""
    factors = [candidate.measure(name) / limit for name, limit in limits.on_sizes.items()]
    if limits.min_accuracy:
        accuracy = candidate.val_accuracy
        factors.append(limits.min_accuracy / accuracy if accuracy > 0 else float("inf"))
    return max(factors, default=0.0)


def preference(candidate: Candidate, limits: Limits) -> tuple[Any, ...]:
    """Return a sorting key: of several candidates, the one with the smallest key is chosen."""
    names = (*limits.on_sizes, *(name for name in _SIZES if name not in limits.on_sizes))
    sizes = tuple(candidate.measure(name) for name in names)
    if limits.min_accuracy is None:
        return (-candidate.val_accuracy, *sizes, candidate.method)
    return (sizes[0], -candidate.val_accuracy, *sizes[1:], candidate.method)


def _reason(limits: Limits, num_feasible: int, num_all: int) -> str:
    if num_feasible == 1:
        return f"the only one of {num_all} students with {limits.describe()}."
    best = "the smallest" if limits.min_accuracy is not None else "the most accurate on validation"
    return f"{best} of the {num_feasible} (of {num_all}) students with {limits.describe()}."


def _compare(picked: Candidate, other: Candidate) -> str:
    gap = 100 * (other.val_accuracy - picked.val_accuracy)
    spreads = [half_width(c.result.val_accuracies) for c in (picked, other)]
    line = f"Runner-up {other.describe()} ({gap:+.1f} points"
    if None not in spreads:
        together = 100 * sum(spread or 0.0 for spread in spreads)
        line += "; 95 % intervals " + ("overlap" if abs(gap) <= together else "do not overlap")
    return line + ")."


def _impossible(candidates: Sequence[Candidate], limits: Limits) -> UserError:
    nearest = min(candidates, key=lambda c: (_violation(c, limits), preference(c, limits)))
    options = {
        "num_parameters": f"--max-params {nearest.measure('num_parameters'):.0f}",
        "flops": f"--max-flops {nearest.measure('flops'):.0f}",
        # Rounded up, so that the printed limit is satisfied when it is used.
        "latency_ms": f"--max-latency-ms {nearest.measure('latency_ms') + 5e-5:.4f}",
    }
    shown = [options[name] for name in limits.on_sizes]
    if limits.min_accuracy is not None:
        shown.append(f"--min-accuracy {int(nearest.val_accuracy * 1e4) / 1e4:.4f}")
    return UserError(
        f"none of {len(candidates)} students has {limits.describe()}. "
        f"Nearest: {nearest.describe()}. It is picked with {' '.join(shown)}."
    )


def _percent(share: float) -> str:
    """Return a limit with one decimal, or with all given decimals if it has more."""
    exact = round(100 * share, 10)
    shown = f"{exact:.1f}"
    return shown if float(shown) == exact else f"{exact:.12g}"


def _size(name: str, value: float) -> str:
    if name == "latency_ms":
        return f"{short_latency(value)} ms"
    return f"{value:,.0f} " + ("parameters" if name == "num_parameters" else "FLOPs")
