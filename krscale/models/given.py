"""Networks that were given as objects and thus have no importable name.

`object:NAME` takes the place of `package.module:callable` for such a network. Its builder is kept
in this process while it is needed and is passed to workers unchanged; it is never written to a
file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from krscale.errors import UserError
from krscale.knowledge.modes import copy_of
from krscale.models.outputs import refuse_programs, unwrap_all

KIND = "object"
"""The part of the names before the colon."""

Builder = Callable[..., nn.Module]

_given: dict[str, Builder] = {}


class Copies:
    """Builds copies of an existing network, with its weights, on the CPU.

    Args:
        network: The network. It is copied immediately, so that later changes to it have no effect.
        where: The argument it was given as, for error messages.

    Raises:
        UserError: If it cannot be copied.
    """

    def __init__(self, network: nn.Module, where: str) -> None:
        refuse_programs(network, where)
        try:
            self.network = unwrap_all(copy_of(network)).cpu().eval()
        except Exception as error:
            raise UserError(
                f"{where}: this {type(network).__name__} cannot be copied "
                f"({type(error).__name__}: {error}). Give a function that returns it."
            ) from error
        for parameter in self.network.parameters():
            parameter.grad = None

    def __call__(self) -> nn.Module:
        """Return another copy."""
        return copy_of(self.network)


@contextmanager
def available(builders: Mapping[str, Builder]) -> Iterator[None]:
    """Make `object:NAME` available to build while the block runs.

    Args:
        builders: The builder of each network, by its whole name.
    """
    before = dict(_given)
    _given.update(builders)
    try:
        yield
    finally:
        _given.clear()
        _given.update(before)


def keep(builders: Mapping[str, Builder]) -> None:
    """Make `object:NAME` available permanently, for use in a worker, which has only one task."""
    _given.update(builders)


def given(names: Iterable[str] | None = None) -> dict[str, Builder]:
    """Return the builders of the networks that were given; only of `names` unless that is None."""
    return {name: _given[name] for name in (_given if names is None else names) if name in _given}


def is_given(name: str) -> bool:
    """Whether a name stands for a network that was given as an object."""
    return name.partition(":")[0] == KIND and ":" in name


def find_given(name: str, where: str) -> Callable[..., Any]:
    """Return the builder of a network.

    Args:
        name: A name such as `object:student.MyNet`.
        where: The config table of the network, for the message.

    Raises:
        UserError: If the network was not given to this process.
    """
    if name in _given:
        return _given[name]
    raise UserError(
        f"{where}.model: {name!r} was given to krscale.search as an object, and is not there any "
        "more. The same call of krscale.search again returns its result, with the students. Every "
        "command finds a class or function of a module that is installed or on PYTHONPATH."
    )
