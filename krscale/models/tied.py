"""Tied weights: tensors that a network has under several names, of which files may hold only one.

`safetensors.torch.save_model` writes each tensor once. And torch loads two names of one tensor one
after the other, so that of different weights the last would silently replace the first.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from krscale.errors import UserError


def with_tied(state: Mapping[str, Tensor], model: nn.Module, place: str) -> dict[str, Tensor]:
    """Return a state dict with all names of each tensor of which it has one.

    Args:
        state: Weights by name.
        model: The network, which may be on meta tensors.
        place: The file, and the config key that named it, for error messages.

    Raises:
        UserError: If the state dict has different weights for two names of one tensor.

    Example:
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> twice = nn.Sequential(layer, layer)
        >>> list(with_tied({"0.weight": torch.ones(2, 2)}, twice, "w.safetensors"))
        ['0.weight', '1.weight']
        >>> other = {"0.weight": torch.ones(2, 2), "1.weight": torch.zeros(2, 2)}
        >>> with_tied(other, twice, "w.safetensors")
        Traceback (most recent call last):
        krscale.errors.UserError: w.safetensors: '0.weight' and '1.weight' are one tensor in ...
    """
    found = dict(state)
    for names in _names_of_tensors(model):
        there = [name for name in names if name in state]
        for name in names if there else ():
            first = state[there[0]]
            value = found.setdefault(name, first)
            same_kind = (value.shape, value.dtype) == (first.shape, first.dtype)
            if same_kind and not torch.equal(value.nan_to_num(), first.nan_to_num()):
                raise UserError(
                    f"{place}: {there[0]!r} and {name!r} are one tensor in {type(model).__name__}, "
                    "and hold different weights there. Take the class that they were trained in."
                )
    return found


def _names_of_tensors(model: nn.Module) -> list[list[str]]:
    """Return the names of each tensor that is saved under several."""
    saved, names = model.state_dict(), dict[int, list[str]]()
    for named in (
        model.named_parameters(remove_duplicate=False),
        model.named_buffers(remove_duplicate=False),
    ):
        for name, tensor in named:
            if name in saved:
                names.setdefault(id(tensor), []).append(name)
    return [several for several in names.values() if len(several) > 1]
