"""Finding the taps of a network that names none: the blocks that everything passes through.

A tap must hold all that the rest of the network goes on with. That is not guessed from names: the
network runs on two images, and once more for each candidate with the candidate's two outputs
exchanged. If its logits are exchanged by that, everything the classifier learns of an image passes
through this block; the inside of a residual block, an auxiliary classifier or a parallel branch
fails the test. A student may have a classifier that still says the same of everything; then the
last output that differs stands for the logits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from krscale.errors import UserError
from krscale.knowledge.hooks import hooked
from krscale.knowledge.layouts import readable_modules
from krscale.knowledge.modes import left_as_it_was
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
    """Put a network into eval mode without gradients, and leave it as it was."""
    # A compiled network would be compiled for these few images.
    with left_as_it_was(model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        model.eval()
        yield


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
        addresses: Where these lie in memory.
        witness: The module whose output must be exchanged; None for the logits.
        tested: Whether everything passes through a block.
    """

    network: nn.Module
    images: Tensor
    read: Callable[[Any], Tensor]
    logits: Tensor
    outputs: dict[str, Tensor]
    addresses: dict[str, int]
    witness: str | None
    tested: dict[str, bool] = field(default_factory=dict)

    @classmethod
    def of(cls, network: nn.Module, images: Tensor, read: Callable[[Any], Tensor]) -> _Search:
        """Run the network once."""
        if len(images) < 2 or torch.equal(images[0], images[1]):
            raise UserError("taps are found with two images that differ; the loader gave no two.")
        seen: list[tuple[str, Any, Any]] = []
        modules = [(name, module) for name, module in readable_modules(network) if name]
        with hooked((module, _noting(seen, name)) for name, module in modules):
            logits = read(network(images))
        times = Counter(name for name, _, _ in seen)
        usable = [
            (name, original, copy)
            for name, original, copy in seen
            if times[name] == 1 and _may_be_tap(copy, len(images), logits)
        ]
        differing = [name for name, _, copy in usable if not torch.equal(copy[0], copy[1])]
        alike = torch.equal(logits[0], logits[1])
        if alike and not differing:
            raise UserError("the network gives two different images the same outputs.")
        return cls(
            network,
            images,
            read,
            logits,
            {name: copy for name, _, copy in usable},
            {name: original.data_ptr() for name, original, _ in usable},
            differing[-1] if alike else None,
        )

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
            expected = self.logits if self.witness is None else self.outputs[self.witness]
            found = self._run_exchanging(name)
            spread = (expected[0] - expected[1]).abs().max()
            error = (found.flip(0) - expected).abs().max()
            self.tested[name] = bool(error <= _TOLERANCE * spread)
        return self.tested[name]

    def _run_exchanging(self, name: str) -> Tensor:
        """Return what the witness gives when the two outputs of a block are exchanged."""
        exchanged = self.outputs[name].flip(0)
        seen: list[tuple[str, Any, Any]] = []
        modules = dict(self.network.named_modules())
        hooks = [(modules[name], _giving(exchanged))]
        if self.witness is not None:
            hooks.append((modules[self.witness], _noting(seen, "")))
        with hooked(hooks):
            logits = self.read(self.network(self.images))
        return seen[0][2] if seen else logits

    def distinct(self, names: list[str]) -> list[str]:
        """Return the taps in depth order: no two of one output, no vectors where there are maps."""
        ordered = [name for name in self.outputs if name in names]
        kept: list[str] = []
        for name in ordered:
            if not any(self._are_one(name, other) for other in kept):
                kept = [other for other in kept if not self._overwrites(name, other)]
                kept.append(name)
        maps = [name for name in kept if self.outputs[name].ndim > 2]
        return maps or kept

    def _are_one(self, first: str, second: str) -> bool:
        # Equal values are not enough: a fresh residual block may give what it gets.
        same = _same(self.outputs[first], self.outputs[second])
        return same and self.addresses[first] == self.addresses[second]

    def _overwrites(self, later: str, first: str) -> bool:
        """Whether a block wrote into what another one gave: both would be read as the later one."""
        one, other = self.outputs[later], self.outputs[first]
        alike = (one.shape, one.stride()) == (other.shape, other.stride())
        in_place = self.addresses[later] == self.addresses[first]
        return alike and in_place and not torch.equal(one, other)


def _noting(seen: list[tuple[str, Any, Any]], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, arguments: Any, output: Any) -> None:
        given = _single(output)
        # A copy, as the next layer may work in place; the original, so that its address stays its.
        seen.append((name, given, None if given is None else given.clone()))

    return hook


def _giving(feature: Tensor) -> Callable[..., Any]:
    """Return a hook that puts a feature in the place of the block's own."""

    def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return feature
        return type(output)(feature if isinstance(item, Tensor) else item for item in output)

    return hook


def _single(output: Any) -> Tensor | None:
    """Return a block's tensor; some give it as the only one in a tuple."""
    if type(output) in (tuple, list):
        tensors = [item for item in output if isinstance(item, Tensor)]
        return tensors[0] if len(tensors) == 1 else None
    return output if isinstance(output, Tensor) else None


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


_LAYERS = (nn.Linear, nn.LayerNorm, nn.GroupNorm, _BatchNorm, _ConvNd)


def _has_children(module: nn.Module) -> bool:
    # A norm with an activation in it is a layer, as libraries have them.
    return not isinstance(module, _LAYERS) and next(module.children(), None) is not None


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
