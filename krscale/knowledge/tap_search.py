"""Finding the taps of a network that names none: the blocks that everything passes through.

A tap must hold all that the rest of the network goes on with. That is not guessed from names: the
network runs on two images, and once more for each candidate with the candidate's two outputs
exchanged. If its logits are exchanged by that, everything the classifier learns of an image passes
through this block; the inside of a residual block, an auxiliary classifier or a parallel branch
fails the test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from krscale.errors import UserError
from krscale.knowledge.taps import unwrapped

MAX_TAPS = 16
"""More blocks than these are thinned out evenly: every tap costs a probe."""
NUM_STAGES = 4
"""Stages of a trunk whose blocks all have one shape, such as a transformer's."""
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class FoundTaps:
    """The taps of a network, the classifier excluded.

    Attributes:
        paths: Module paths in depth order.
        shapes: Shape of each one's output for one image, as the block gives it.
    """

    paths: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def stage_ends(self) -> tuple[int, ...]:
        """For each stage the 1-based number of its last tap; the classifier ends the last one.

        A stage ends where the shape changes; a trunk of one shape is cut into `NUM_STAGES`.
        """
        last = len(self.paths) + 1
        changes = [i for i in range(1, len(self.shapes)) if self.shapes[i] != self.shapes[i - 1]]
        if changes:
            return (*changes, last)
        parts = min(NUM_STAGES, last)
        return tuple(-(-part * last // parts) for part in range(1, parts + 1))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network into eval mode without gradients, and every module back into its own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        # A compiled network would be compiled for these few images.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def find_taps(model: nn.Module, images: Tensor, read: Callable[[Any], Tensor]) -> FoundTaps:
    """Find the taps of a network by running it.

    Blocks of a class that occurs more than once are taken as a whole; where there are none,
    modules with children, or layers with all that follows them up to the next. The last of three
    or more is left out, as the classifier reads it.

    Args:
        model: The network, wrapped or not.
        images: `[B, C, H, W]`, at least two that differ, on the network's device.
        read: Takes the network's logits `[B, K]` out of what it returns.

    Raises:
        UserError: If nothing is found.
    """
    network = unwrapped(model)
    with evaluating(network):
        search = _Search.of(network, images[:2], read)
        attempts = (search.repeated, search.composites, search.layers)
        found: list[str] = []
        for attempt in attempts:
            names = search.distinct(attempt())
            if len(names) > len(found):
                found = names
            if len(found) > 1:
                break
    if not found:
        raise UserError(
            "no block was found in this network that everything passes through; name its taps "
            f"yourself, module paths in depth order. It has {_some(network)}."
        )
    paths = _thinned(found[:-1] if len(found) > 2 else found)
    shapes = tuple(tuple(search.outputs[path].shape[1:]) for path in paths)
    return FoundTaps(tuple(paths), shapes)


@dataclass
class _Search:
    """What one run of a network showed, and the runs that test its blocks.

    Attributes:
        network: The network, in eval mode.
        images: Two images.
        read: Takes the logits out of what the network returns.
        logits: `[2, K]`.
        outputs: What could be a tap gave, in the order in which it ended.
        tested: Whether everything passes through a block.
    """

    network: nn.Module
    images: Tensor
    read: Callable[[Any], Tensor]
    logits: Tensor
    outputs: dict[str, Tensor]
    tested: dict[str, bool] = field(default_factory=dict)

    @classmethod
    def of(cls, network: nn.Module, images: Tensor, read: Callable[[Any], Tensor]) -> _Search:
        """Run the network once."""
        if len(images) < 2 or torch.equal(images[0], images[1]):
            raise UserError("taps are found with two images that differ; the loader gave no two.")
        seen: list[tuple[str, Any]] = []
        handles = [
            module.register_forward_hook(_noting(seen, name))
            for name, module in network.named_modules()
            if name
        ]
        try:
            logits = read(network(images))
        finally:
            for handle in handles:
                handle.remove()
        if torch.equal(logits[0], logits[1]):
            raise UserError("the network gives two different images the same logits.")
        times = Counter(name for name, _ in seen)
        outputs = {
            name: output
            for name, output in seen
            if times[name] == 1 and _may_be_tap(output, len(images), logits)
        }
        return cls(network, images, read, logits, outputs)

    def repeated(self) -> list[str]:
        """Return the blocks whose class occurs more than once, the outermost ones."""
        classes = {
            name: type(module)
            for name, module in self.network.named_modules()
            if name in self.outputs and _has_children(module) and not _is_sequence(module)
        }
        many = Counter(classes.values())
        found: list[str] = []
        for name, kind in classes.items():  # parents come before what they contain
            inside = any(name.startswith(f"{outer}.") for outer in found)
            if many[kind] > 1 and not inside and self.is_passed_by_all(name):
                found.append(name)
        return found

    def composites(self) -> list[str]:
        """Return the modules with children that contain no other such module."""
        modules = dict(self.network.named_modules())
        found = [
            name
            for name in self.outputs
            if _has_children(modules[name]) and self.is_passed_by_all(name)
        ]
        return [a for a in found if not any(b.startswith(f"{a}.") for b in found)]

    def layers(self) -> list[str]:
        """Return the last module before every layer with a matrix of weights but the first."""
        modules = dict(self.network.named_modules())
        found: list[str] = []
        segment: str | None = None
        for name in self.outputs:
            if _has_children(modules[name]):
                continue
            weight = getattr(modules[name], "weight", None)
            if isinstance(weight, Tensor) and weight.ndim > 1 and segment is not None:
                found.append(segment)
                segment = None
            if (segment is not None or _has_matrix(modules[name])) and self.is_passed_by_all(name):
                segment = name
        return [*found, segment] if segment is not None else found

    def is_passed_by_all(self, name: str) -> bool:
        """Whether the logits follow when this block's two outputs are exchanged."""
        if name not in self.tested:
            exchanged = self.outputs[name].flip(0)
            handle = self.network.get_submodule(name).register_forward_hook(
                lambda module, arguments, output: exchanged
            )
            try:
                logits = self.read(self.network(self.images))
            finally:
                handle.remove()
            spread = (self.logits[0] - self.logits[1]).abs().max()
            error = (logits.flip(0) - self.logits).abs().max()
            self.tested[name] = bool(error <= _TOLERANCE * spread)
        return self.tested[name]

    def distinct(self, names: list[str]) -> list[str]:
        """Return the taps in depth order: no two of one output, no vectors where there are maps."""
        ordered = [name for name in self.outputs if name in names]
        kept: list[str] = []
        for name in ordered:
            output = self.outputs[name]
            if not any(_same(output, self.outputs[other]) for other in kept):
                kept.append(name)
        maps = [name for name in kept if self.outputs[name].ndim > 2]
        return maps or kept


def _noting(seen: list[tuple[str, Any]], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, arguments: Any, output: Any) -> None:
        # A copy: the next layer may work in place.
        seen.append((name, output.clone() if isinstance(output, Tensor) else output))

    return hook


def _may_be_tap(output: Any, batch_size: int, logits: Tensor) -> bool:
    return (
        isinstance(output, Tensor)
        and output.is_floating_point()
        and 2 <= output.ndim <= 4
        and output.shape[0] == batch_size
        and not _same(output, logits)
    )


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first, second)


def _has_children(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _is_sequence(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential)


def _has_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim > 1


def _thinned(paths: list[str]) -> list[str]:
    count = min(len(paths), MAX_TAPS)
    return [paths[-(-number * len(paths) // count) - 1] for number in range(1, count + 1)]


def _some(network: nn.Module) -> str:
    names = [name for name, _ in network.named_modules() if name]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "no submodules"
