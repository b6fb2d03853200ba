"""Finding the taps of a network that declares none: blocks through which all information passes.

A tap must contain everything that the rest of the network uses. This is tested rather than guessed
from names: the network runs on two images, and once more for each candidate with the candidate's
two outputs exchanged. If this exchanges the logits, everything the classifier gets from an image
passes through the block. The inside of a residual block, an auxiliary classifier and a parallel
branch fail this test. The classifier of a student may still give the same logits for every image;
the last output that differs then takes the place of the logits.
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
from krscale.knowledge.modes import left_as_it_was, memory_mark, share_memory
from krscale.knowledge.tap_order import written_later
from krscale.knowledge.taps import unwrapped

MAX_TAPS = 16
"""Maximum number of taps, as every tap costs a probe; more blocks are thinned out evenly."""
NUM_STAGES = 4
"""Number of stages of a trunk whose blocks all have the same shape, such as a transformer's."""
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class FoundTaps:
    """The taps of a network, without the classifier.

    Attributes:
        paths: Module paths in depth order.
        shapes: Shape of each tap's output for one image, in the block's own layout.
    """

    paths: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def stage_ends(self) -> tuple[int, ...]:
        """For each stage the 1-based number of its last tap; the classifier ends the last one.

        A stage ends where the shape changes; a trunk of one shape is divided into `NUM_STAGES`.
        """
        last = len(self.paths) + 1
        changes = [i for i in range(1, len(self.shapes)) if self.shapes[i] != self.shapes[i - 1]]
        if changes:
            return (*changes, last)
        parts = min(NUM_STAGES, last)
        return tuple(-(-part * last // parts) for part in range(1, parts + 1))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network into eval mode without gradients, and restore it afterwards."""
    # Otherwise a compiled network would be compiled for these few images.
    with left_as_it_was(model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        model.eval()
        yield


def find_taps(model: nn.Module, images: Tensor, read: Callable[[Any], Tensor]) -> FoundTaps:
    """Find the taps of a network by running it.

    Blocks whose class occurs more than once come first, each as a whole. If fewer than two are
    found, the candidates are modules with children, and then layers with everything that follows
    them up to the next layer. If three or more are found, the last is left out, as it is the
    classifier's input.

    Args:
        model: The network, wrapped or not.
        images: `[B, C, H, W]`, at least two that differ, on the network's device.
        read: Extracts the logits `[B, K]` from the network's output.

    Raises:
        UserError: If no tap is found.
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
    """The results of one run of a network, and further runs that test its blocks.

    Attributes:
        network: The network, in eval mode.
        images: Two images.
        read: Extracts the logits from the network's output.
        logits: `[2, K]`.
        outputs: Outputs of the modules that may be taps, in the order in which they ended.
        seen: The same with what the modules gave, into which later ones may have written.
        witness: The module whose output must be exchanged; None for the logits.
        tested: Results of `is_passed_by_all` by module.
    """

    network: nn.Module
    images: Tensor
    read: Callable[[Any], Tensor]
    logits: Tensor
    outputs: dict[str, Tensor]
    seen: dict[str, _Seen]
    witness: str | None
    tested: dict[str, bool] = field(default_factory=dict)

    @classmethod
    def of(cls, network: nn.Module, images: Tensor, read: Callable[[Any], Tensor]) -> _Search:
        """Run the network once."""
        if len(images) < 2 or torch.equal(images[0], images[1]):
            raise UserError("taps are found with two images that differ; the loader gave no two.")
        seen: list[_Seen] = []
        modules = [(name, module) for name, module in readable_modules(network) if name]
        with hooked((module, _noting(seen, name)) for name, module in modules):
            logits = read(network(images))
        times = Counter(one.name for one in seen)
        may_be = [
            one
            for one in seen
            if times[one.name] == 1 and _may_be_tap(one.copy, len(images), logits)
        ]
        written = written_later(network, [one.name for one in may_be], images)
        usable = [one for one in may_be if one.name not in written]
        differing = [one.name for one in usable if not torch.equal(one.copy[0], one.copy[1])]
        alike = torch.equal(logits[0], logits[1])
        if alike and not differing:
            raise UserError("the network gives two different images the same outputs.")
        return cls(
            network,
            images,
            read,
            logits,
            {one.name: one.copy for one in usable},
            {one.name: one for one in usable},
            differing[-1] if alike else None,
        )

    def repeated(self) -> list[str]:
        """Return the outermost blocks whose class occurs more than once."""
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
        """Return the last module before every layer with a weight matrix, except the first."""
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
        """Return whether exchanging this block's two outputs also exchanges the logits."""
        if name not in self.tested:
            expected = self.logits if self.witness is None else self.outputs[self.witness]
            found = self._run_exchanging(name)
            spread = (expected[0] - expected[1]).abs().max()
            error = (found.flip(0) - expected).abs().max()
            self.tested[name] = bool(error <= _TOLERANCE * spread)
        return self.tested[name]

    def _run_exchanging(self, name: str) -> Tensor:
        """Return the output of the witness when the two outputs of a block are exchanged."""
        exchanged = self.outputs[name].flip(0)
        seen: list[_Seen] = []
        modules = dict(self.network.named_modules())
        hooks = [(modules[name], _giving(exchanged))]
        if self.witness is not None:
            hooks.append((modules[self.witness], _noting(seen, "")))
        with hooked(hooks):
            logits = self.read(self.network(self.images))
        return seen[0].copy if seen else logits

    def distinct(self, names: list[str]) -> list[str]:
        """Return taps in depth order: without duplicate outputs, and maps only if there are any."""
        ordered = [name for name in self.outputs if name in names]
        kept: list[str] = []
        for name in ordered:
            if not any(self._are_one(name, other) for other in kept):
                kept = [other for other in kept if not self._overwrites(name, other)]
                kept.append(name)
        maps = [name for name in kept if self.outputs[name].ndim > 2]
        return maps or kept

    def _are_one(self, first: str, second: str) -> bool:
        # Equal values are not enough: a new residual block may return its input.
        same = _same(self.outputs[first], self.outputs[second])
        one, other = self.seen[first].original, self.seen[second].original
        return same and one.data_ptr() == other.data_ptr() and not self._overwrites(second, first)

    def _overwrites(self, later: str, first: str) -> bool:
        """Return whether a block wrote into another's output, so that both would be read alike."""
        one, other = self.seen[first], self.seen[later]
        written = one.mark != other.mark
        return written and share_memory(one.original, other.original)


@dataclass(frozen=True)
class _Seen:
    """What a module gave, None if no tensor; and a copy, as the next layer may work in place."""

    name: str
    original: Any
    copy: Any
    mark: int


def _noting(seen: list[_Seen], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, arguments: Any, output: Any) -> None:
        given = _single(output)
        kept = (None, 0) if given is None else (given.clone(), memory_mark(given))
        seen.append(_Seen(name, given, *kept))

    return hook


def _giving(feature: Tensor) -> Callable[..., Any]:
    """Return a hook that replaces the block's output by a feature."""

    def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return feature
        return type(output)(feature if isinstance(item, Tensor) else item for item in output)

    return hook


def _single(output: Any) -> Tensor | None:
    """Return a block's tensor, which may be the only one in a tuple."""
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
    # A norm layer that contains an activation counts as a layer; some libraries have such norms.
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
