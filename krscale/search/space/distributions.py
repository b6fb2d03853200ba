"""One field of a search space: its distribution, read in Optuna's words and checked.

{ type = "float", low = 0.02, high = 0.5, log = true }
{ type = "int", low = 1, high = "num_taps" }
{ type = "categorical", choices = ["arithmetic", "geometric"] }
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from krscale.errors import UserError, unknown_name

NUM_TAPS = "num_taps"
"""What a space may write for the number of the teacher's taps."""

_TYPES: Mapping[str, tuple[type[BaseDistribution], frozenset[str]]] = {
    "float": (FloatDistribution, frozenset({"low", "high", "log", "step"})),
    "int": (IntDistribution, frozenset({"low", "high", "log", "step"})),
    "categorical": (CategoricalDistribution, frozenset({"choices"})),
}


def read_distribution(spec: Mapping[str, Any], num_taps: int, where: str) -> BaseDistribution:
    """Return the distribution that a table of a space describes.

    Args:
        spec: The table, without its condition.
        num_taps: The teacher's taps, for `"num_taps"` as a bound.
        where: File and field, for errors.

    Raises:
        UserError: On an unknown type or key, a missing bound, an empty or inverted range, `log`
            with a bound of zero or less, a step that does not lead from `low` to `high`.
    """
    if "type" not in spec:
        raise UserError(
            f'{where}: expected a table such as {{ type = "float", low = 0, high = 1 }}.'
        )
    if spec["type"] not in _TYPES:
        raise unknown_name("type", str(spec["type"]), _TYPES, where)
    kind, allowed = _TYPES[spec["type"]]
    arguments = {key: value for key, value in spec.items() if key != "type"}
    for key in arguments:
        if key not in allowed:
            raise unknown_name("key", key, allowed, where)
    if kind is CategoricalDistribution:
        _check_choices(arguments, where)
    else:
        for end in ("low", "high"):
            arguments[end] = read_bound(arguments.get(end), num_taps, f"{where}: {end}")
        _check_range(arguments, where)
    try:
        with warnings.catch_warnings():
            # Optuna would cut a range that its step does not divide, and warn.
            warnings.simplefilter("error", UserWarning)
            return kind(**arguments)
    except (TypeError, ValueError, UserWarning) as error:
        raise UserError(f"{where}: {error} (got {dict(spec)}).") from None


def read_bound(value: Any, num_taps: int, where: str) -> float:
    """Return a bound as a number.

    Raises:
        UserError: If it is missing, no number, infinite, or another word than `num_taps`.
    """
    if value == NUM_TAPS:
        return num_taps
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        got = "nothing" if value is None else repr(value)
        raise UserError(f'{where}: expected a finite number or "{NUM_TAPS}" (got {got}).')
    return value


def suggest(trial: optuna.trial.BaseTrial, name: str, distribution: BaseDistribution) -> Any:
    """Ask a trial for the value of one parameter."""
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    low_high = distribution.low, distribution.high  # type: ignore[attr-defined]
    options = {"step": distribution.step, "log": distribution.log}  # type: ignore[attr-defined]
    ask = trial.suggest_int if isinstance(distribution, IntDistribution) else trial.suggest_float
    return ask(name, *low_high, **options)


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Return whether the distribution can ever say this value."""
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except (ValueError, TypeError):
        return False


def extremes(distribution: BaseDistribution) -> Sequence[Any]:
    """Return the values that a config must accept for it to accept all: choices, or both ends."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    assert isinstance(distribution, FloatDistribution | IntDistribution)  # noqa: S101
    return distribution.low, distribution.high


def describe_range(distribution: BaseDistribution) -> str:
    """Return the range as one reads it: `0.03 .. 0.5, log`, or the choices."""
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(str, distribution.choices))
    assert isinstance(distribution, FloatDistribution | IntDistribution)  # noqa: S101
    step = "" if distribution.step in (None, 1) else f", step {distribution.step:g}"
    log = ", log" if distribution.log else ""
    return f"{distribution.low:g} .. {distribution.high:g}{log}{step}"


def _check_choices(arguments: Mapping[str, Any], where: str) -> None:
    choices = arguments.get("choices")
    if not isinstance(choices, list) or not choices:
        got = "nothing" if choices is None else repr(choices)
        raise UserError(f"{where}: choices: expected a list of at least one value (got {got}).")
    twice = next((value for value in choices if choices.count(value) > 1), None)
    if twice is not None:
        raise UserError(f"{where}: choices: {twice!r} appears twice.")


def _check_range(arguments: Mapping[str, Any], where: str) -> None:
    low, high = arguments["low"], arguments["high"]
    if low > high:
        raise UserError(f"{where}: the range is inverted: low = {low} is above high = {high}.")
    if arguments.get("log") and low <= 0:
        raise UserError(f"{where}: a log range starts above 0 (got low = {low}).")
