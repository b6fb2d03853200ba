"""Building blocks of the sections of an experiment: value types, and a closed, frozen table."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from fractions import Fraction
from functools import cache
from pathlib import PurePath
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from krscale.errors import UserError, unknown_name
from krscale.foreign import path_problem

_SHARE = re.compile(r"[+-]?[0-9./]{1,60}([eE][+-]?[0-9]{1,3})?")
"""Format of a size, which is part of names and of paths."""
StrictInt = Annotated[int, Field(strict=True)]
Seed = Annotated[int, Field(strict=True, ge=-(2**62), le=2**62)]
"""Seed of a training: what torch accepts, with room for what is added for final seeds."""
Count = Annotated[int, Field(strict=True, ge=1)]
Width = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
Side = Annotated[int, Field(strict=True, ge=1, le=16_384)]
Weight = Annotated[float, Field(strict=True, ge=0.0, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0.0, lt=1.0, allow_inf_nan=False)]
PositiveShare = Annotated[float, Field(strict=True, gt=0.0, le=1.0, allow_inf_nan=False)]
Progress = Annotated[float, Field(strict=True, ge=0.0, le=1.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0.0, allow_inf_nan=False)]
Temperature = Annotated[float, Field(strict=True, ge=0.001, le=1000.0, allow_inf_nan=False)]
"""Beyond these limits its square, or a number divided by it, leaves the range of floats."""


def check_number(kind: Any, name: str, value: float, where: str) -> None:
    """Refuse a number that a setting of the same kind would refuse.

    Args:
        kind: `Count`, `Positive`, `Progress`, `Share`, `Temperature` or `Weight`.
        name: Of the argument.
        value: What was given.
        where: The function that takes it, for the message.

    Raises:
        UserError: If it is not allowed.

    Example:
        >>> check_number(Share, "dropped", 0.5, "my_loss")
        >>> check_number(Share, "dropped", 1.0, "my_loss")
        Traceback (most recent call last):
        krscale.errors.UserError: my_loss: dropped: input should be less than 1 (got 1.0).
    """
    try:
        _adapter(kind).validate_python(_plain(value))
    except ValidationError as error:
        message = plain_message(error.errors()[0]["msg"])
        raise UserError(f"{where}: {name}: {message} (got {value!r}).") from None


def plain_message(message: str) -> str:
    """Return pydantic's message about a value, worded to follow the name of the value.

    >>> plain_message("Value error, At least one is needed")
    'at least one is needed'
    """
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def refuse_repeats(
    values: Sequence[str], identity: Callable[[str], Hashable] = lambda value: value
) -> None:
    """Refuse a list that names one thing twice.

    Args:
        values: What a user listed.
        identity: Returns equal results for values that mean the same, such as `"1/4"` and `"0.25"`.

    Raises:
        ValueError: Naming the two.

    Example:
        >>> refuse_repeats(["1/4", "1/8", "0.25"], identity=parse_capacity)
        Traceback (most recent call last):
        ValueError: '1/4' and '0.25' are the same; leave one out
    """
    seen: dict[Hashable, str] = {}
    for value in values:
        first = seen.setdefault(identity(value), value)
        if first != value:
            raise ValueError(f"{first!r} and {value!r} are the same; leave one out")
        if list(values).count(value) > 1:
            raise ValueError(f"{value!r} is named twice")


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    refuse_repeats(values)
    return values


def _not_empty(values: tuple[str, ...]) -> tuple[str, ...]:
    if not values:
        raise ValueError("at least one is needed")
    return values


def _a_path(text: str) -> str:
    if problem := path_problem(text):
        raise ValueError(problem)
    return text


PathText = Annotated[str, AfterValidator(_a_path)]
"""A path as a user writes it, with `~` for the home directory; it need not exist."""
Names = Annotated[tuple[str, ...], AfterValidator(_distinct)]
"""A list of different names; it may be empty."""
SomeNames = Annotated[Names, AfterValidator(_not_empty)]
"""A list of different names, at least one."""


def _plain(value: Any) -> Any:
    """Return values of numpy and pathlib as plain Python numbers and strings."""
    if isinstance(value, PurePath):
        return str(value)
    if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0:
        return value.item()
    return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value


class Section(BaseModel):
    """A table of the experiment file: immutable, and closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True
    )

    @model_validator(mode="before")
    @classmethod
    def _plain_values(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {name: _plain(value) for name, value in values.items()}

    @classmethod
    def from_keywords(cls, values: Mapping[str, Any], where: str) -> Self:
        """Return the settings that keyword arguments name, with defaults for the rest.

        Args:
            values: The keyword arguments.
            where: The function that takes them, for the message.

        Raises:
            UserError: Naming every unknown setting with the nearest one, and every wrong value.
        """
        for name in values:
            if name not in cls.model_fields:
                raise unknown_name("setting", name, cls.model_fields, where)
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            found = [
                f"{where}: {'.'.join(map(str, e['loc'][:1])) or 'settings'}: "
                f"{plain_message(e['msg'])} (got {e['input']!r})."
                for e in error.errors(include_url=False)
            ]
            raise UserError("\n".join(found)) from None


def parse_capacity(text: str) -> float:
    """Return the share that a capacity stands for: `"1/16"` is 0.0625.

    Raises:
        ValueError: If the text is not a number or fraction in (0, 1].

    Example:
        >>> parse_capacity("1/16"), parse_capacity("0.05")
        (0.0625, 0.05)
    """
    try:
        if not _SHARE.fullmatch(text):  # also because 1e9999999 would take minutes to compute
            raise ValueError
        share = float(Fraction(text))
    except (ValueError, ArithmeticError):
        raise ValueError(f"{text!r} is not a fraction such as '1/16' or '0.05'") from None
    if not 0.0 < share <= 1.0:
        raise ValueError(f"a capacity lies in (0, 1], a share of the teacher's parameters: {text}")
    return share


def is_share(text: str) -> bool:
    """Whether a size is written as a share of the teacher and not as the name of a student.

    Example:
        >>> is_share("1/16"), is_share("small")
        (True, False)
    """
    return not text[:1].isalpha()


def fingerprint(content: Any) -> str:
    """Return 16 hexadecimal digits that identify JSON-serialisable content.

    Example:
        >>> fingerprint({"a": 1, "b": [2, 3]}) == fingerprint({"b": [2, 3], "a": 1})
        True
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
