"""The depth order of taps, which is the order in which a network runs their blocks.

Groups of taps are contiguous ranges of depth. With taps in another order, a group would mix depths
and teach a student's tap of yet another depth, and no other check would detect it.
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
    """Refuse taps that are not named in the order in which the network runs their blocks.

    If a block runs several times, its last run counts, as the tap reads its last output. A block
    must not write into the output of an earlier tap either: both would then be read with the same
    values.

    Args:
        model: The network, wrapped or not; on meta tensors nothing is computed.
        paths: Module paths of its taps, all of which exist.
        images: `[B, C, H, W]`, real images if available: some networks run other blocks for black
            ones.
        where: Prefix of the error message that names the taps.

    Raises:
        UserError: With two taps and the order of all; or with a block and what it writes into.

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
    named = [path for path in paths if path in order]  # some blocks may not run for these images
    moved = next(((a, b) for a, b in zip(named, order, strict=True) if a != b), None)
    if moved is not None:
        raise UserError(
            f"{where}: tap {moved[0]!r} is named before {moved[1]!r}, which runs first. "
            f"Taps are named in this order: {', '.join(order)}."
        )


@dataclass(frozen=True)
class _Ended:
    """The output of a block, and its number of writes when the block ended."""

    output: Any
    num_writes: int


@torch.no_grad()
def _run(network: nn.Module, paths: Sequence[str], images: Tensor) -> dict[str, _Ended]:
    """Return the outputs of the blocks, in the order in which the blocks ended."""
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
    """Refuse a block that returns the tensor of another block after writing into it."""
    for (path, first), (later, second) in combinations(ended.items(), 2):
        if first.output is second.output and first.num_writes != second.num_writes:
            raise UserError(
                f"{where}: tap {later!r} gives the tensor that {path!r} gave, written into since "
                "(x += ..., x.add_(...), inplace=True), so that both would be read as one. Let a "
                "new tensor be made (x = x + ..., inplace=False), or name one of the two."
            )
