"""What a field declares beside its type: where it is searched by default, and when it is used.

`Annotated[Weight, SearchRange(0.3, 10.0, log=True)]`: the range is what `"default"` stands for in a
search space. It lies within what the field allows, and is no limit: a space may give its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class SearchRange:
    """A range of numbers.

    Attributes:
        low: Smallest value.
        high: Largest value; `"num_taps"` is the number of the teacher's taps.
        log: Whether a search draws evenly on a logarithmic scale.
        type: Whether the values are whole numbers.
    """

    low: float
    high: float | Literal["num_taps"]
    log: bool = False
    type: Literal["float", "int"] = "float"

    def table(self) -> Mapping[str, Any]:
        """Return it as a search space writes it."""
        return {"type": self.type, "low": self.low, "high": self.high, "log": self.log}


@dataclass(frozen=True)
class SearchChoices:
    """A list of values.

    Attributes:
        choices: All of them, each once.
    """

    choices: tuple[Any, ...]

    def table(self) -> Mapping[str, Any]:
        """Return it as a search space writes it."""
        return {"type": "categorical", "choices": list(self.choices)}


@dataclass(frozen=True)
class UsedWith:
    """Another field of the same section must have a value for this one to matter.

    Where a field declares several of these, one that holds is enough.

    Attributes:
        field: Name of the other field.
        values: What it must be; one of these.
    """

    field: str
    values: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.field} = {' or '.join(map(repr, self.values))}"
