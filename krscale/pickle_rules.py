"""What a reader of pickles makes of the names in them (`plain_pickle.py`), or refuses of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class RefusedError(ValueError):
    """What a pickle holds, or asks for, that is not read; the message goes on after "it"."""


class UnknownObjectError(RefusedError):
    """What would be an object of some class, or the call of a function."""


@dataclass(frozen=True)
class Global:
    """The name of what a pickle would import. It is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return "".join(c if c.isprintable() else "?" for c in f"{self.module}.{self.name}")


class Rules:
    """What a reader makes of globals; this one refuses every one.

    Each method returns what stands in the place of the object. They must not call anything that
    the file names, and must not make more than the file has bytes for.
    """

    def find(self, found: Global) -> object:
        """Return what stands for a global that was named.

        Raises:
            RefusedError: If the file has no business with it.
        """
        raise UnknownObjectError(f"asks for {found}")

    def call(self, function: object, arguments: tuple[Any, ...]) -> object:
        """Return what stands for the result of a call."""
        raise UnknownObjectError(f"calls {kind_of(function)}")

    def new(self, kind: object, arguments: tuple[Any, ...]) -> object:
        """Return what stands for a new object of a class."""
        raise UnknownObjectError(f"makes {kind_of(kind)}")

    def build(self, value: object, state: object) -> None:
        """Take the state of an object that `call` or `new` has returned."""
        raise UnknownObjectError(f"sets the state of {kind_of(value)}")

    def persistent(self, name: object) -> object:
        """Return what stands for an object that is kept beside the pickle."""
        raise UnknownObjectError("refers to objects outside of it")


def kind_of(value: object) -> str:
    """Word what a value is, for errors."""
    return str(value) if isinstance(value, Global) else f"a {type(value).__name__}"
