"""The depth order of taps: that in which a network runs their blocks.

Groups of taps are stretches of depth. Of taps in another order a group would be a mixture of depths
and teach the student's tap at yet another one, and nothing else would tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from krscale.errors import UserError
from krscale.knowledge.hooks import hooked
from krscale.knowledge.modes import left_as_it_was, num_writes
from krscale.knowledge.taps import unwrapped


def check_depth_order(model: nn.Module, paths: Sequence[str], images: Tensor, where: str) -> None:
    """Refuse taps that are named in another order than that in which a network runs their blocks.

    A block that runs several times counts where it runs last, as its last output is the tap's. Nor
    may a block write into what the one before it gave: after a run both would be read as one.

    Args:
        model: The network, wrapped or not; on meta tensors this computes nothing.
        paths: Module paths of its taps, all of which exist.
        images: `[B, C, H, W]`, real ones if there are any: some networks take another way through
            their blocks for black ones.
        where: What names the taps, for the message of an error.

    Raises:
        UserError: Naming two of them, and all in their order; or a block and what it writes into.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> images = torch.rand(2, 1, 2, 2)
        >>> check_depth_order(network, ("1", "2"), images, "teacher.taps")
        >>> check_depth_order(network, ("2", "1"), images, "teacher.taps")
        Traceback (most recent call last):
        krscale.errors.UserError: teacher.taps: tap '2' is named before '1', ... order: 1, 2.
    """
    if len(paths) < 2:
        return
    ended = _run(unwrapped(model), paths, images)
    _check_written(ended, where)
    order = tuple(ended)
    named = [path for path in paths if path in order]  # images may pass some by
    moved = next(((a, b) for a, b in zip(named, order, strict=True) if a != b), None)
    if moved is not None:
        raise UserError(
            f"{where}: tap {moved[0]!r} is named before {moved[1]!r}, which runs first. "
            f"Taps are named in this order: {', '.join(order)}."
        )


@dataclass(frozen=True)
class _Ended:
    """What a block gave, and how often that had been written to when the block ended."""

    output: Any
    num_writes: int


@torch.no_grad()
def _run(network: nn.Module, paths: Sequence[str], images: Tensor) -> dict[str, _Ended]:
    """Return what the blocks gave, in the order in which they ended."""
    ended: dict[str, _Ended] = {}
    hooks = [(network.get_submodule(path), partial(_move_to_end, ended, path)) for path in paths]
    with hooked(hooks), left_as_it_was(network), torch.random.fork_rng(devices=[]):
        network.eval()(images)
    return ended


def _move_to_end(
    ended: dict[str, _Ended], path: str, module: nn.Module, arguments: Any, output: Any
) -> None:
    ended.pop(path, None)
    ended[path] = _Ended(output, num_writes(output) if isinstance(output, Tensor) else 0)


def _check_written(ended: Mapping[str, _Ended], where: str) -> None:
    """Refuse a block that hands on the tensor of another one, after it has written into it."""
    for (path, first), (later, second) in combinations(ended.items(), 2):
        if first.output is second.output and first.num_writes != second.num_writes:
            raise UserError(
                f"{where}: tap {later!r} gives the tensor that {path!r} gave, written into since "
                "(x += ..., x.add_(...), inplace=True), so that both would be read as one. Let a "
                "new tensor be made (x = x + ..., inplace=False), or name one of the two."
            )
