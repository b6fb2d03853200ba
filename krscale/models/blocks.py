"""The blocks of a network: what can be a tap, with shapes, in the order in which they run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from krscale.errors import UserError
from krscale.knowledge.layouts import find_layouts, other_size


@dataclass(frozen=True)
class Block:
    """A block of a network whose output can be a tap.

    Attributes:
        path: Module path.
        kind: Name of its class.
        shape: Of its output for one image, as the block gives it.
        layout: Where its channels are; empty where it has no positions, `?` where nothing tells.
        suggested: Whether it is one of the repeated blocks that make up the depth of the network.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    layout: str
    suggested: bool


def list_blocks(model: nn.Module, image_shape: Sequence[int]) -> tuple[Block, ...]:
    """Return all blocks that run once and give one tensor, in the order in which they end.

    Args:
        model: The network; on meta tensors nothing is computed.
        image_shape: `(C, H, W)`.
    """
    ran = _run(model, image_shape)
    try:
        others = {path: tuple(o.shape) for path, o in _run(model, other_size(image_shape))}
    except Exception:  # noqa: BLE001 - many networks take images of one size only
        others = {}
    suggested = set(suggested_taps(model, [path for path, _ in ran]))
    blocks = []
    for path, output in ran:
        kind = type(model.get_submodule(path)).__name__
        shape = tuple(output.shape)
        layout = _layout(model, path, shape, others.get(path))
        blocks.append(Block(path, kind, shape[1:], layout, path in suggested))
    return tuple(blocks)


def suggested_taps(model: nn.Module, paths: Sequence[str]) -> list[str]:
    """Return the blocks that a network repeats, but the last; or the taps that it names itself.

    They are the items of its lists of modules; stages, which hold such lists, are looked into. The
    last block is left out: the classifier, which is always a tap, says as much.

    Args:
        model: The network.
        paths: Blocks that run once and give a tensor, in order.
    """
    if own := getattr(model, "tap_paths", None):
        return list(own)
    kinds = {name: type(child) for name, child in model.named_children() if name in paths}
    side_by_side = [
        [path for path in paths if kinds.get(path) is kind]
        for kind in set(kinds.values())
        if not issubclass(kind, nn.Sequential)
    ]
    if len(most := max(side_by_side, key=len, default=[])) > 2:
        return most[:-1]
    items = [path for path in paths if _is_item(model, path)]

    def below(path: str) -> list[str]:
        inside = [item for item in items if item.startswith(path)]
        return [i for i in inside if not any(i.startswith(f"{o}.") for o in inside)]

    def blocks(path: str) -> list[str]:
        inside = below(f"{path}.") if _is_stage(model.get_submodule(path)) else []
        return [block for item in inside for block in blocks(item)] or [path]

    found = {block for item in below("") for block in blocks(item)}
    return [path for path in paths if path in found][:-1]


def _is_item(model: nn.Module, path: str) -> bool:
    """Whether a block with parts of its own stands in a list of modules."""
    parent = model.get_submodule(path.rpartition(".")[0])
    has_parts = any(True for _ in model.get_submodule(path).children())
    return has_parts and isinstance(parent, nn.Sequential | nn.ModuleList)


def _is_stage(block: nn.Module) -> bool:
    names = {name for name, _ in block.named_children()}
    return isinstance(block, nn.Sequential) or bool(names & {"blocks", "layers", "layer"})


def _run(model: nn.Module, image_shape: Sequence[int]) -> list[tuple[str, Tensor]]:
    """Return what the blocks give that have parts and run once, in the order in which they end."""
    outputs: list[tuple[str, Any]] = []
    handles = [
        module.register_forward_hook(partial(_record, outputs, path))
        for path, module in model.named_modules()
        if path and any(True for _ in module.children())
    ]
    modes = [(module, module.training) for module in model.modules()]
    parameter = next(model.parameters(), torch.empty(0))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model.eval()(torch.zeros(2, *image_shape, device=parameter.device))
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    times: dict[str, int] = {}
    for path, _ in outputs:
        times[path] = times.get(path, 0) + 1
    single = ((path, _single(output)) for path, output in outputs if times[path] == 1)
    return [(path, o) for path, o in single if o is not None and o.ndim in (2, 3, 4)]


def _single(output: Any) -> Tensor | None:
    if isinstance(output, tuple | list):
        tensors = [item for item in output if isinstance(item, Tensor)]
        return tensors[0] if len(tensors) == 1 else None
    return output if isinstance(output, Tensor) else None


def _record(
    outputs: list[tuple[str, Any]], path: str, module: nn.Module, arguments: Any, output: Any
) -> None:
    outputs.append((path, output))


def _layout(
    model: nn.Module, path: str, shape: tuple[int, ...], other: tuple[int, ...] | None
) -> str:
    others = None if other is None else {path: other}
    try:
        return find_layouts(model, {path: shape}, others).get(path, "")
    except UserError:
        return "?"
