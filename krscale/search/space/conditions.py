"""Conditions under which a field is searched; each is on another field of the same method.

{ type = "float", low = 0.1, high = 2.0, when = { "distill.granularity" = { low = 2 } } }
{ type = "int", low = 2, high = 6, when = { "student.model" = ["mobilenet"] } }

A condition is a list of values, or a range of which either end may be omitted. If the condition
does not hold, or the other field is itself not searched in that trial, the experiment's own value
is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
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
from krscale.search.space.fields import needs_quotes, unquoted


@dataclass(frozen=True)
class Condition:
    """Requirement on the other field: one of `choices`, or, without choices, within the range.

    Example:
        >>> condition = Condition("distill.granularity", low=2)
        >>> condition.holds({"distill.granularity": 3}), condition.holds({})  # not searched itself
        (True, False)
    """

    path: str
    choices: tuple[Any, ...] = ()
    low: float = -math.inf
    high: float = math.inf

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Return whether it holds for the values that a trial has been given so far."""
        return self.path in values and self.allows(values[self.path])

    def allows(self, value: Any) -> bool:
        """Return whether it holds for a value of the other field."""
        if self.choices:
            return any(_equal(value, choice) for choice in self.choices)
        return bool(self.low <= value <= self.high)

    def __str__(self) -> str:
        if self.choices:
            return f"{self.path} in {list(self.choices)}"
        if self.high == math.inf:
            return f"{self.path} >= {self.low:g}"
        if self.low == -math.inf:
            return f"{self.path} <= {self.high:g}"
        return f"{self.low:g} <= {self.path} <= {self.high:g}"


def _equal(one: Any, other: Any) -> bool:
    """Return whether values are equal, floats up to rounding: three steps of 0.1 are not 0.3."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    return bool(one == other)


def read_conditions(spec: Any, num_taps: int, where: str) -> tuple[Condition, ...]:
    """Return the conditions of a field's `when`; all must hold.

    Raises:
        UserError: If it is not a table of lists and ranges.

    Example:
        >>> spec = {"distill.granularity": {"low": 2, "high": "num_taps"}}
        >>> [str(condition) for condition in read_conditions(spec, 6, "my.toml")]
        ['2 <= distill.granularity <= 6']
    """
    if not isinstance(spec, Mapping) or not spec:
        raise UserError(
            f'{where}: when: expected a table such as {{ "distill.granularity" = [2, 3] }} or '
            f'{{ "distill.granularity" = {{ low = 2 }} }} (got {spec!r}).'
        )
    for path, wanted in spec.items():
        if meant := unquoted(path, wanted):
            raise needs_quotes(meant, f"{where}: when")
    return tuple(
        _read(path, wanted, num_taps, f"{where}: when {path}") for path, wanted in spec.items()
    )


def allowed_values(conditions: Iterable[Condition], other: BaseDistribution) -> list[Any]:
    """Return values that a field can take and for which all conditions on it hold.

    Args:
        conditions: Conditions on that one field.
        other: Distribution of that field.

    Returns:
        All such values, if the field has choices or a condition lists values; for a range, both
        ends. Empty if the conditions never hold together.
    """
    conditions = list(conditions)
    listed = [condition.choices for condition in conditions if condition.choices]
    candidates: Iterable[Any]
    if isinstance(other, CategoricalDistribution):
        candidates = other.choices
    elif listed:
        candidates = [value for choices in listed for value in choices]
    else:
        assert isinstance(other, FloatDistribution | IntDistribution)  # noqa: S101
        low = max([other.low, *(condition.low for condition in conditions)])
        high = min([other.high, *(condition.high for condition in conditions)])
        candidates = [*_steps_near(low, other), *_steps_near(high, other)]
    found: list[Any] = [
        value
        for value in candidates
        if _is_taken(value, other) and all(condition.allows(value) for condition in conditions)
    ]
    if found and not listed and not isinstance(other, CategoricalDistribution):
        found = [min(found), max(found)]
    return list(dict.fromkeys(found))


def _steps_near(value: float, other: FloatDistribution | IntDistribution) -> list[float]:
    """Return the values that a range can take at, just below and just above a value, ascending."""
    if other.step is None:
        return [value]
    number = math.floor((value - other.low) / other.step)
    return [other.low + step * other.step for step in (number - 1, number, number + 1)]


def _is_taken(value: Any, other: BaseDistribution) -> bool:
    """Return whether a trial can have exactly this value; a listed value matches no other."""
    if not contains(other, value):
        return False
    if isinstance(other, FloatDistribution) and other.step is not None:
        return any(_equal(float(value), step) for step in _steps_near(value, other))
    return True


def check_condition(
    condition: Condition, distributions: Mapping[str, BaseDistribution], where: str
) -> None:
    """Refuse a condition on a field that is not searched, or that can never hold.

    Args:
        condition: Condition of one field.
        distributions: Distributions of all fields of the same method.
        where: File and field, for errors.
    """
    if condition.path not in distributions:
        raise unknown_name("field in when", condition.path, distributions, where)
    other = distributions[condition.path]
    if condition.choices:
        if isinstance(other, FloatDistribution) and other.step is None and not other.single():
            raise UserError(
                f"{where}: when {condition.path}: its range {describe_range(other)} has no steps, "
                f"so that it is hardly ever exactly {condition.choices[0]!r}: give a range, such "
                f"as {{ low = {condition.choices[0]!r} }}."
            )
        taken = allowed_values([condition], other)
        never = [v for v in condition.choices if not any(_equal(v, other) for other in taken)]
    elif isinstance(other, CategoricalDistribution):
        raise UserError(f"{where}: when {condition.path}: it has choices; give a list of them.")
    else:
        never = (
            []
            if allowed_values([condition], other)
            else [f"{condition.low:g} .. {condition.high:g}"]
        )
    if never:
        raise UserError(
            f"{where}: when {condition.path}: it is never {never[0]}; "
            f"its range is {describe_range(other)}."
        )


def in_order(conditions: Mapping[str, tuple[Condition, ...]], where: str) -> list[str]:
    """Return all fields, each after the fields that its conditions refer to.

    Raises:
        UserError: If conditions form a circle, with its fields.
    """
    others = {path: [c.path for c in found] for path, found in conditions.items()}
    try:
        return list(TopologicalSorter(others).static_order())
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise UserError(f"{where}: conditions go in a circle: {circle}.") from None


def _read(path: str, wanted: Any, num_taps: int, where: str) -> Condition:
    if isinstance(wanted, list) and wanted:
        if twice := [value for value in wanted if wanted.count(value) > 1]:
            raise UserError(f"{where}: {twice[0]!r} is named twice (got {wanted}).")
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
