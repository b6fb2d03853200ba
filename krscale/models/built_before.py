"""Networks that share weights with one that was built before.

A function that returns the same network again, or builds a new one around the same layers, hands
each training the weights that the one before has left. Nothing of a result would show it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from functools import partial

from torch import Tensor, nn

from krscale.errors import UserError

_seen: dict[int, weakref.ref[Tensor]] = {}
"""What a training changes in the networks that were built in this process, by the tensor's id."""


def refuse_built_before(network: nn.Module, name: str, where: str) -> None:
    """Refuse a network of which a part belongs to one that this was called with before.

    What no training changes may be shared: frozen weights, and constants kept as buffers.

    Args:
        network: As it was built.
        name: Of what built it.
        where: The config table of the network, for the message.

    Raises:
        UserError: Naming a weight.
    """
    changed = dict(_changed_by_training(network))
    for path, tensor in changed.items():
        seen = _seen.get(id(tensor))
        if seen is not None and seen() is tensor:
            raise UserError(
                f"{where}.model: {name} returns {path!r} of a network that it has returned "
                "before, so every training would go on from the one before. Let it build a new "
                "one each time; of weights that are there already, copy.deepcopy(...)."
            )
    for tensor in changed.values():
        _seen[id(tensor)] = weakref.ref(tensor, partial(_forget, id(tensor)))


def _changed_by_training(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, parameter in network.named_parameters():
        if parameter.requires_grad:
            yield path, parameter
    for path, buffer in network.named_buffers():
        if path.endswith(("running_mean", "running_var")):
            yield path, buffer


def _forget(key: int, gone: weakref.ref[Tensor]) -> None:
    if _seen.get(key) is gone:  # another tensor may have its id by now
        del _seen[key]
