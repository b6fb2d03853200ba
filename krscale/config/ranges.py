"""Where a field is searched by default: what `"default"` stands for in a search space.

A field declares it beside its type, `Annotated[Weight, SearchRange(0.3, 10.0, log=True)]`. It lies
within what the field allows, and is no limit: a space may give a range of its own.
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
