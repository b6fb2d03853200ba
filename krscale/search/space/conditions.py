"""When a field is searched: a condition on another field of the same method.

{ type = "float", low = 0.1, high = 2.0, when = { "distill.granularity" = { low = 2 } } }
{ type = "int", low = 2, high = 6, when = { "student.model" = ["mobilenet"] } }

A list of values, or a range of which either end may be left out. Where the condition does not hold,
or the other field is itself not searched in that trial, the experiment's own value stays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from krscale.errors import UserError, unknown_name
from krscale.search.space.distributions import contains, describe_range, read_bound


@dataclass(frozen=True)
class Condition:
    """What the other field must be: one of `choices`, or, without choices, within the range."""

    path: str
    choices: tuple[Any, ...] = ()
    low: float = -math.inf
    high: float = math.inf

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Return whether it holds for what a trial has been given so far."""
        if self.path not in values:
            return False
        value = values[self.path]
        return value in self.choices if self.choices else bool(self.low <= value <= self.high)

    def example(self, other: BaseDistribution) -> Any:
        """Return a value of the other field for which this holds."""
        if self.choices:
            return self.choices[0]
        assert isinstance(other, FloatDistribution | IntDistribution)  # noqa: S101
        value = max(self.low, other.low)
        return math.ceil(value) if isinstance(other, IntDistribution) else value

    def __str__(self) -> str:
        if self.choices:
            return f"{self.path} in {list(self.choices)}"
        if self.high == math.inf:
            return f"{self.path} >= {self.low:g}"
        if self.low == -math.inf:
            return f"{self.path} <= {self.high:g}"
        return f"{self.low:g} <= {self.path} <= {self.high:g}"


def read_conditions(spec: Any, num_taps: int, where: str) -> tuple[Condition, ...]:
    """Return the conditions of a field's `when`; all must hold.

    Raises:
        UserError: If it is not a table of lists and ranges.
    """
    if not isinstance(spec, Mapping) or not spec:
        raise UserError(
            f'{where}: when: expected a table such as {{ "distill.granularity" = [2, 3] }} or '
            f'{{ "distill.granularity" = {{ low = 2 }} }} (got {spec!r}).'
        )
    return tuple(
        _read(path, wanted, num_taps, f"{where}: when {path}") for path, wanted in spec.items()
    )


def check_condition(
    condition: Condition, distributions: Mapping[str, BaseDistribution], where: str
) -> None:
    """Refuse a condition on a field that is not searched, or that can never hold.

    Args:
        condition: Of one field.
        distributions: All fields of the same method.
        where: File and field, for errors.
    """
    if condition.path not in distributions:
        raise unknown_name("field in when", condition.path, distributions, where)
    other = distributions[condition.path]
    if condition.choices:
        never = [value for value in condition.choices if not contains(other, value)]
    elif isinstance(other, CategoricalDistribution):
        raise UserError(f"{where}: when {condition.path}: it has choices; give a list of them.")
    else:
        overlaps = condition.low <= other.high and other.low <= condition.high  # type: ignore[attr-defined]
        never = [] if overlaps else [f"{condition.low:g} .. {condition.high:g}"]
    if never:
        raise UserError(
            f"{where}: when {condition.path}: it is never {never[0]}; "
            f"its range is {describe_range(other)}."
        )


def in_order(conditions: Mapping[str, tuple[Condition, ...]], where: str) -> list[str]:
    """Return all fields, each after those that its conditions speak of.

    Raises:
        UserError: If conditions go in a circle; names it.
    """
    others = {path: [c.path for c in found] for path, found in conditions.items()}
    try:
        return list(TopologicalSorter(others).static_order())
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise UserError(f"{where}: conditions go in a circle: {circle}.") from None


def _read(path: str, wanted: Any, num_taps: int, where: str) -> Condition:
    if isinstance(wanted, list) and wanted:
        return Condition(path, choices=tuple(wanted))
    if not isinstance(wanted, Mapping) or not wanted:
        raise UserError(
            f"{where}: expected a list of values, or a range such as {{ low = 2 }} "
            f"(got {wanted!r})."
        )
    for key in wanted:
        if key not in ("low", "high"):
            raise unknown_name("key", key, ("low", "high"), where)
    ends = {key: read_bound(value, num_taps, f"{where}: {key}") for key, value in wanted.items()}
    low, high = ends.get("low", -math.inf), ends.get("high", math.inf)
    if low > high:
        raise UserError(f"{where}: the range is inverted (got {dict(wanted)}).")
    return Condition(path, low=low, high=high)
