"""Rules by which a reader of pickles (`plain_pickle.py`) replaces or refuses the names in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class RefusedError(ValueError):
    """A pickle holds or asks for something that is not read; the message continues after "it"."""


class UnknownObjectError(RefusedError):
    """A pickle asks for an object of some class, or for the call of a function."""


@dataclass(frozen=True)
class Global:
    """The name of something that a pickle asks to import. It is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return "".join(c if c.isprintable() else "?" for c in f"{self.module}.{self.name}")


class Rules:
    """How a reader replaces globals and objects; this base class refuses all of them.

    Each method returns the replacement of the object. It must not call anything that the file
    names, and must not make more than the file has bytes for.
    """

    def find(self, found: Global) -> object:
        """Return the replacement of a global.

        Raises:
            RefusedError: If the global is not allowed.
        """
        raise UnknownObjectError(f"asks for {found}")

    def call(self, function: object, arguments: tuple[Any, ...]) -> object:
        """Return the replacement of the result of a call."""
        raise UnknownObjectError(f"calls {kind_of(function)}")

    def new(self, kind: object, arguments: tuple[Any, ...]) -> object:
        """Return the replacement of a new object of a class."""
        raise UnknownObjectError(f"makes {kind_of(kind)}")

    def build(self, value: object, state: object) -> None:
        """Set the state of an object that `call` or `new` has returned."""
        raise UnknownObjectError(f"sets the state of {kind_of(value)}")

    def persistent(self, name: object) -> object:
        """Return the replacement of an object that is stored outside the pickle."""
        raise UnknownObjectError("refers to objects outside of it")


def kind_of(value: object) -> str:
    """Return words for the kind of a value, for errors."""
    return str(value) if isinstance(value, Global) else f"a {type(value).__name__}"
