"""What must hold of the taps of a network: their order, and that later layers leave them alone.

Groups of taps are contiguous ranges of depth, which is the order in which a network runs their
blocks. With taps in another order, a group would mix depths and teach a student's tap of yet
another depth. A tap into which a later layer writes is read with the values of that layer. No other
check would detect either.
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
from krscale.knowledge.layouts import readable_modules
from krscale.knowledge.modes import left_as_it_was, memory_mark, share_memory
from krscale.knowledge.taps import tensor_in, unwrapped

_MAKE_NEW = "Let a new tensor be made (x = x + ..., inplace=False), or name"


def check_depth_order(model: nn.Module, paths: Sequence[str], images: Tensor, where: str) -> None:
    """Refuse taps that are not in the order in which their blocks run, or are written into later.

    If a block runs several times, its last run counts, as the tap reads its last output. A tap
    reads the values that are in a block's output when the whole network has run. So a later block
    must not write into it: an activation in place that follows directly may, but neither another
    tap nor anything that runs after a further layer.

    Args:
        model: The network, wrapped or not; on meta tensors nothing is computed.
        paths: Module paths of its taps, all of which exist.
        images: `[B, C, H, W]`, real images if available: some networks run other blocks for black
            ones.
        where: Prefix of the error message that names the taps.

    Raises:
        UserError: With two taps and the order of all; or with a block and what is written into.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> images = torch.rand(2, 1, 2, 2)
        >>> check_depth_order(network, ("1", "2"), images, "teacher.taps")
        >>> check_depth_order(network, ("2", "1"), images, "teacher.taps")
        Traceback (most recent call last):
        krscale.errors.UserError: teacher.taps: tap '2' is named before '1', ... order: 1, 2.
    """
    if not paths:
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


def written_later(model: nn.Module, paths: Sequence[str], images: Tensor) -> set[str]:
    """Return the blocks whose outputs are written into after later layers have run.

    Args:
        model: The network, wrapped or not.
        paths: Module paths of blocks in it.
        images: `[B, C, H, W]`.
    """
    ended = _run(unwrapped(model), paths, images)
    return {path for path, block in ended.items() if block is not None and block.is_written_later}


@dataclass
class _Ended:
    """The output of a block that has ended.

    Attributes:
        tensor: The tensor that its tap reads.
        mark: Its `memory_mark` when the block ended.
        until_next: The same when the next layer with weights had ended; None if there was none.
    """

    tensor: Tensor
    mark: int
    until_next: int | None = None

    @property
    def is_written_later(self) -> bool:
        """Whether it was written into after the next layer, so that more layers are read in it."""
        return self.until_next not in (None, memory_mark(self.tensor))


@torch.no_grad()
def _run(network: nn.Module, paths: Sequence[str], images: Tensor) -> dict[str, _Ended | None]:
    """Return what the blocks gave, in the order in which they ended; None if it is no tensor."""
    ended: dict[str, _Ended | None] = {}
    layers = [(name, module) for name, module in readable_modules(network) if _has_weights(module)]
    hooks = [(layer, partial(_end_layer, ended, name)) for name, layer in layers]
    # After those of the layers, as a layer may be a tap itself.
    blocks = [(network.get_submodule(path), partial(_end_block, ended, path)) for path in paths]
    with hooked([*hooks, *blocks]), left_as_it_was(network), torch.random.fork_rng(devices=[]):
        network.eval()(images)
    return ended


def _has_weights(module: nn.Module) -> bool:
    return any(weight is not None for weight in module._parameters.values())


def _end_layer(
    ended: Mapping[str, _Ended | None], name: str, module: nn.Module, arguments: Any, output: Any
) -> None:
    for path, block in ended.items():
        is_part = path.startswith(f"{name}.")  # the module has weights of its own, and began first
        if block is not None and block.until_next is None and not is_part:
            block.until_next = memory_mark(block.tensor)


def _end_block(
    ended: dict[str, _Ended | None], path: str, module: nn.Module, arguments: Any, output: Any
) -> None:
    ended.pop(path, None)
    tensor = tensor_in(output)
    ended[path] = None if tensor is None else _Ended(tensor, memory_mark(tensor))


def _check_written(ended: Mapping[str, _Ended | None], where: str) -> None:
    """Refuse blocks whose outputs have other values at the end than when they were given."""
    read = {path: block for path, block in ended.items() if block is not None}
    for (path, first), (later, second) in combinations(read.items(), 2):
        if first.mark != second.mark and share_memory(first.tensor, second.tensor):
            raise UserError(
                f"{where}: tap {later!r} gives the tensor that {path!r} gave, written into since "
                "(x += ..., x.add_(...), inplace=True), so that both would be read as one. "
                f"{_MAKE_NEW} one of the two."
            )
    for path, block in read.items():
        if block.is_written_later:
            raise UserError(
                f"{where}: tap {path!r}: what this block gives is written into after later layers "
                "have run (x += ..., x.add_(...), inplace=True), so that what is read would be "
                f"theirs as well. {_MAKE_NEW} another tap."
            )
