"""One field of a search space: its distribution, in Optuna's terms, read and checked.

{ type = "float", low = 0.02, high = 0.5, log = true }
{ type = "int", low = 1, high = "num_taps" }
{ type = "categorical", choices = ["arithmetic", "geometric"] }
"default"                        # the range that the field itself declares
{ type = "default" }             # the same, for use with a condition
"""

from __future__ import annotations

import sys
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

from krscale.config import search_ranges
from krscale.errors import UserError, nearest, unknown_name
from krscale.foreign import reason_of

DEFAULT = "default"
"""Keyword of a space, alone or as a type, for the range that a field itself declares."""
NUM_TAPS = "num_taps"
"""Keyword of a space for the number of the teacher's taps."""

_MOST_INT = 2**53
"""Largest integer that samplers, which compute in floats, distinguish from the next."""
_TYPES: Mapping[str, tuple[type[BaseDistribution], frozenset[str]]] = {
    "float": (FloatDistribution, frozenset({"low", "high", "log", "step"})),
    "int": (IntDistribution, frozenset({"low", "high", "log", "step"})),
    "categorical": (CategoricalDistribution, frozenset({"choices"})),
}


def with_default_range(spec: Mapping[str, Any], dotted: str, where: str) -> Mapping[str, Any]:
    """Return a field's table, with `"default"` replaced by the range that the field declares.

    Args:
        spec: The table, without its condition.
        dotted: Path of the field.
        where: File and field, for errors.

    Raises:
        UserError: If the field declares no range (the error names the fields that do), or if the
            table has further keys.

    Example:
        >>> with_default_range({"type": "default"}, "distill.temperature", "my.toml")
        {'type': 'float', 'low': 1.0, 'high': 8.0, 'log': True}
    """
    if spec.get("type") != DEFAULT:
        return spec
    if extra := sorted(spec.keys() - {"type"}):
        raise UserError(
            f'{where}: "{DEFAULT}" is a whole range and takes no further keys '
            f"(got {', '.join(extra)}); write type, low and high for a range of your own."
        )
    declared = search_ranges()
    if dotted not in declared:
        guess = nearest(dotted, declared)
        hint = f" Did you mean {guess!r}?" if guess else ""
        raise UserError(
            f'{where}: this field declares no range, so it cannot be "{DEFAULT}".{hint} Write its '
            f"type and range. These fields declare one: {', '.join(declared)}."
        )
    return declared[dotted].table()


def read_distribution(spec: Mapping[str, Any], num_taps: int, where: str) -> BaseDistribution:
    """Return the distribution that a table of a space describes.

    Args:
        spec: The table, without its condition.
        num_taps: Number of the teacher's taps, for `"num_taps"` as a bound.
        where: File and field, for errors.

    Raises:
        UserError: On an unknown type or key, a missing bound, an empty or inverted range, `log`
            with a bound of zero or less, a step that does not lead from `low` to `high`.

    Example:
        >>> read_distribution({"type": "int", "low": 1, "high": "num_taps"}, 6, "my.toml")
        IntDistribution(high=6, log=False, low=1, step=1)
        >>> read_distribution({"type": "float", "low": 2, "high": 1}, 6, "my.toml")
        Traceback (most recent call last):
        krscale.errors.UserError: my.toml: the range is inverted: low = 2 is above high = 1.
    """
    if "type" not in spec:
        raise UserError(
            f'{where}: expected "{DEFAULT}", or a table such as '
            f'{{ type = "float", low = 0, high = 1 }}.'
        )
    if not isinstance(spec["type"], str) or spec["type"] not in _TYPES:
        raise unknown_name("type", str(spec["type"]), [*_TYPES, DEFAULT], where)
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
        _check_range(arguments, kind, where)
    try:
        with warnings.catch_warnings():
            # Optuna would shorten a range that is not a multiple of its step, and warn.
            warnings.simplefilter("error", UserWarning)
            return kind(**arguments)
    except (TypeError, ValueError, ArithmeticError, UserWarning) as error:
        raise UserError(f"{where}: {reason_of(error)} (got {dict(spec)}).") from None


def read_bound(value: Any, num_taps: int, where: str) -> float:
    """Return a bound as a number.

    Raises:
        UserError: If it is missing, infinite, or neither a number nor `"num_taps"`.

    Example:
        >>> read_bound(0.5, 6, "my.toml"), read_bound("num_taps", 6, "my.toml")
        (0.5, 6)
    """
    if value == NUM_TAPS:
        return num_taps
    if not _is_number(value):
        got = "nothing" if value is None else repr(value)
        raise UserError(f'{where}: expected a finite number or "{NUM_TAPS}" (got {got}).')
    number: float = value
    return number


def suggest(trial: optuna.trial.BaseTrial, name: str, distribution: BaseDistribution) -> Any:
    """Ask a trial for the value of one parameter.

    Example:
        >>> rate = FloatDistribution(0.01, 1.0, log=True)
        >>> trial = optuna.trial.FixedTrial({"train.learning_rate": 0.1})
        >>> suggest(trial, "train.learning_rate", rate)
        0.1
    """
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    low_high = distribution.low, distribution.high  # type: ignore[attr-defined]
    options = {"step": distribution.step, "log": distribution.log}  # type: ignore[attr-defined]
    ask = trial.suggest_int if isinstance(distribution, IntDistribution) else trial.suggest_float
    return ask(name, *low_high, **options)


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Return whether the distribution can ever produce this value.

    Example:
        >>> steps = IntDistribution(2, 10, step=2)
        >>> contains(steps, 4), contains(steps, 5), contains(steps, "many")
        (True, False, False)
    """
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except (ValueError, TypeError):
        return False


def extremes(distribution: BaseDistribution) -> Sequence[Any]:
    """Return values such that a config that accepts them accepts all: choices, or both ends.

    Example:
        >>> extremes(FloatDistribution(0.0, 0.5)), extremes(CategoricalDistribution("abc"))
        ((0.0, 0.5), ('a', 'b', 'c'))
    """
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    assert isinstance(distribution, FloatDistribution | IntDistribution)  # noqa: S101
    return distribution.low, distribution.high


def describe_range(distribution: BaseDistribution) -> str:
    """Return the range in readable form: `0.03 .. 0.5, log`, or the choices.

    Example:
        >>> describe_range(FloatDistribution(0.03, 0.5, log=True))
        '0.03 .. 0.5, log'
        >>> describe_range(IntDistribution(2, 10, step=2))
        '2 .. 10, step 2'
    """
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


def _is_number(value: Any) -> bool:
    """Return whether a value is a number that a finite float can hold; TOML allows longer ones."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) <= sys.float_info.max
    )


def _check_range(arguments: Mapping[str, Any], kind: type[BaseDistribution], where: str) -> None:
    low, high, step = arguments["low"], arguments["high"], arguments.get("step")
    if not isinstance(arguments.get("log", False), bool):
        raise UserError(f"{where}: log: expected true or false (got {arguments['log']!r}).")
    if step is not None and (not _is_number(step) or step <= 0):
        raise UserError(f"{where}: step: expected a finite number above 0 (got {step!r}).")
    if kind is IntDistribution:
        for name in ("low", "high", "step"):
            value = arguments.get(name) or 0
            if value != int(value) or abs(value) > _MOST_INT:
                raise UserError(
                    f"{where}: {name}: expected a whole number of at most {_MOST_INT:,} "
                    f"(got {value!r})."
                )
    if low > high:
        raise UserError(f"{where}: the range is inverted: low = {low} is above high = {high}.")
    if step is not None and (high - low) / step > _MOST_INT:
        raise UserError(
            f"{where}: step: {step:g} is too small for a range from {low:g} to {high:g}: at most "
            f"{_MOST_INT:,} steps are told apart."
        )
    if arguments.get("log") and low <= 0:
        raise UserError(f"{where}: a log range starts above 0 (got low = {low}).")
