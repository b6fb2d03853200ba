"""Refuse networks that share weights with one that was built before.

If a function returns the same network again, or builds a new one around the same layers, each
training starts with the weights that the previous one left. The results would not show it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from functools import partial

from torch import Tensor, nn

from krscale.errors import UserError

_seen: dict[int, weakref.ref[Tensor]] = {}
"""Tensors that training changes in the networks built in this process, by the tensor's id."""


def refuse_built_before(network: nn.Module, name: str, where: str) -> None:
    """Refuse a network that shares a part with one that was passed to this function before.

    Parts that training does not change may be shared: frozen weights, and constants in buffers.

    Args:
        network: The network as it was built.
        name: Name of the callable that built it.
        where: The config table of the network, for the message.

    Raises:
        UserError: If there is a shared part; the message names a weight.
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
    if _seen.get(key) is gone:  # another tensor may have the same id by now
        del _seen[key]
