"""What a field declares besides its type: where it is searched by default, and when it is used.

`Annotated[Weight, SearchRange(0.3, 10.0, log=True)]`: the range is what `"default"` stands for in a
search space. It lies within the values that the field allows, and is not a limit: a search space
may give another range.
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
        log: Whether a search draws uniformly on a logarithmic scale.
        type: `"int"` for whole numbers.
    """

    low: float
    high: float | Literal["num_taps"]
    log: bool = False
    type: Literal["float", "int"] = "float"

    def table(self) -> Mapping[str, Any]:
        """Return the range as a table of a search space."""
        return {"type": self.type, "low": self.low, "high": self.high, "log": self.log}


@dataclass(frozen=True)
class SearchChoices:
    """A list of values.

    Attributes:
        choices: All of them, each once.
    """

    choices: tuple[Any, ...]

    def table(self) -> Mapping[str, Any]:
        """Return the list as a table of a search space."""
        return {"type": "categorical", "choices": list(self.choices)}


@dataclass(frozen=True)
class UsedWith:
    """Another field of the same section must have one of some values for this one to be used.

    Where a field declares several of these, it is enough that one holds.

    Attributes:
        field: Name of the other field.
        values: The values, of which it must have one.
    """

    field: str
    values: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.field} = {' or '.join(map(repr, self.values))}"
