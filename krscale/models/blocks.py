"""The blocks of a network that can be taps, with shapes, in the order in which they run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from krscale.errors import UserError
from krscale.knowledge.hooks import hooked
from krscale.knowledge.layouts import (
    BATCH,
    LayerTrace,
    TapShape,
    find_layouts,
    other_size,
    readable_modules,
    zeros,
)
from krscale.knowledge.modes import left_as_it_was
from krscale.knowledge.tap_search import find_taps


@dataclass(frozen=True)
class Block:
    """A block of a network whose output can be a tap.

    Attributes:
        path: Module path.
        kind: Name of its class.
        shape: Shape of its output for one image, as the block returns it.
        layout: Where its channels are; empty if it has no positions, `?` if this cannot be
            determined.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    layout: str


def list_blocks(model: nn.Module, image_shape: Sequence[int]) -> tuple[Block, ...]:
    """Return all blocks that run once and return one tensor for all images, in order of completion.

    Args:
        model: The network; if it is on meta tensors, nothing is computed.
        image_shape: `(C, H, W)`.
    """
    paths = [path for path, _ in _blocks_of(model)]
    trace = LayerTrace(model, paths)
    with hooked(trace.hooks()):
        ran = _run(model, image_shape)
    reached = _run(model, other_size(image_shape), to_the_end=False)
    others = {path: tuple(output.shape) for path, output in reached}
    blocks = []
    for path, output in ran:
        kind = type(model.get_submodule(path)).__name__
        shape = tuple(output.shape)
        tap = TapShape(shape, others.get(path), trace.until[path])
        layout = _layout(model, path, tap)
        blocks.append(Block(path, kind, shape[1:], layout))
    return tuple(blocks)


def proposed_taps(model: nn.Module, image_shape: Sequence[int]) -> tuple[str, ...]:
    """Return the taps that a network defines, or those that are found by running it.

    Args:
        model: The network, on a real device.
        image_shape: `(C, H, W)`.

    Raises:
        UserError: If no tap is found.
    """
    own: tuple[str, ...] | None = getattr(model, "tap_paths", None)
    if own is not None:
        return tuple(own)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, *image_shape, generator=generator, device="cpu")
    return find_taps(model, images, lambda logits: logits).paths


def _run(
    model: nn.Module, image_shape: Sequence[int], *, to_the_end: bool = True
) -> list[tuple[str, Tensor]]:
    """Return the outputs of blocks with submodules that run once, in order of completion.

    Args:
        model: The network.
        image_shape: `(C, H, W)`.
        to_the_end: Whether to raise an error that stops the run. Otherwise return what was reached,
            since many networks take images of one size only.
    """
    outputs: list[tuple[str, Any]] = []
    hooks = [(module, partial(_record, outputs, path)) for path, module in _blocks_of(model)]
    try:
        with (
            hooked(hooks),
            left_as_it_was(model),
            torch.no_grad(),
            torch.random.fork_rng(devices=[]),
        ):
            model.eval()(zeros(model, image_shape))
    except Exception:
        if to_the_end:
            raise
    times: dict[str, int] = {}
    for path, _ in outputs:
        times[path] = times.get(path, 0) + 1
    single = ((path, _single(output)) for path, output in outputs if times[path] == 1)
    found = [(path, o) for path, o in single if o is not None and o.ndim in (2, 3, 4)]
    # Exclude tokens [T, B, C], and windows in place of images: these cannot be a tap.
    return [(path, output) for path, output in found if len(output) == BATCH]


def _blocks_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules that have submodules, with their paths."""
    named = readable_modules(model)
    return [
        (path, module) for path, module in named if path and any(True for _ in module.children())
    ]


def _single(output: Any) -> Tensor | None:
    if isinstance(output, tuple | list):
        tensors = [item for item in output if isinstance(item, Tensor)]
        return tensors[0] if len(tensors) == 1 else None
    return output if isinstance(output, Tensor) else None


def _record(
    outputs: list[tuple[str, Any]], path: str, module: nn.Module, arguments: Any, output: Any
) -> None:
    outputs.append((path, output))


def _layout(model: nn.Module, path: str, tap: TapShape) -> str:
    try:
        return find_layouts(model, {path: tap}).get(path, "")
    except UserError:
        return "?"
