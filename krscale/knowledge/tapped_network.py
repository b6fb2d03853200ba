"""A network of anybody's with its taps: how it is run, what it returns, how its features lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from krscale.errors import UserError
from krscale.knowledge.tap_search import FoundTaps, evaluating, find_taps
from krscale.knowledge.taps import TapOutputs, check_taps, run_tapped, unwrapped


@dataclass(frozen=True)
class TappedNetwork:
    """A network, the module paths of its taps, and what follows from running it once.

    Attributes:
        network: As its owner uses it; wrappers and all.
        paths: Module paths of the taps in depth order, the classifier excluded.
        channels_last: For each tap whether its feature maps are `[B, H, W, C]`.
        stage_ends: For each stage the 1-based number of its last tap.
        shapes: Shape of each tap's feature for one image, `[C, H, W]` where it is a map.
        num_classes: `K`.
    """

    network: nn.Module
    paths: tuple[str, ...]
    channels_last: tuple[bool, ...]
    stage_ends: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    num_classes: int

    @classmethod
    def of(
        cls, network: nn.Module, images: Tensor, paths: Sequence[str] = (), where: str = "network"
    ) -> TappedNetwork:
        """Take the given taps, the network's own (`tap_paths`), or those that `find_taps` finds.

        Args:
            network: Left in the modes that its modules have.
            images: `[B, C, H, W]` real images, at least two that differ where taps are to be found.
            paths: Module paths in depth order.
            where: What the network is, for the message of an error: `"teacher"`.

        Raises:
            UserError: If taps do not exist, none is found, or a layout cannot be told.
        """
        inner = unwrapped(network)
        images = images.to(_device(inner))
        try:
            found = _taps_of(inner, images, tuple(paths), where)
            with evaluating(inner):
                outputs = run_tapped(inner, found.paths, images[:2])
                logits = logits_of(outputs.logits)
                last = tuple(
                    feature.ndim == 4 and _is_channels_last(inner, path, feature, images[:2])
                    for path, feature in zip(found.paths, outputs.features, strict=True)
                )
        except UserError as error:
            message = str(error)
            raise UserError(
                message if message.startswith(where) else f"{where}: {message}"
            ) from None
        features = channels_first(outputs.features, last)
        shapes = tuple(tuple(feature.shape[1:]) for feature in features)
        return cls(network, found.paths, last, found.stage_ends, shapes, logits.shape[1])

    def __call__(self, images: Tensor) -> TapOutputs:
        """Run the network once, in whatever modes it is."""
        outputs = run_tapped(self.network, self.paths, images)
        features = channels_first(outputs.features, self.channels_last)
        return TapOutputs(logits_of(outputs.logits), features)


def logits_of(output: Any) -> Tensor:
    """Return the logits `[B, K]` within what a network returns.

    Args:
        output: The logits; or an object or mapping that has them under `logits`; or a tuple that
            holds one tensor.

    Raises:
        UserError: If they are not there, or of another shape.
    """
    found = output
    if isinstance(output, Mapping):
        found = output.get("logits")
    elif not isinstance(output, Tensor) and hasattr(output, "logits"):
        found = output.logits
    elif isinstance(output, (tuple, list)):
        tensors = [part for part in output if isinstance(part, Tensor)]
        found = tensors[0] if len(tensors) == 1 else None
    if not isinstance(found, Tensor):
        raise UserError(
            f"the network returns {type(output).__name__}, and no tensor of logits was found in "
            "it; wrap it in a module that returns the logits alone."
        )
    if found.ndim != 2:
        raise UserError(f"the network's logits are {list(found.shape)}, and not [B, K].")
    return found


def channels_first(features: Sequence[Tensor], channels_last: Sequence[bool]) -> tuple[Tensor, ...]:
    """Return the features with every map as `[B, C, H, W]`."""
    pairs = zip(features, channels_last, strict=True)
    return tuple(feature.movedim(-1, 1) if last else feature for feature, last in pairs)


_CHANNELS_FIRST = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm)


def _device(network: nn.Module) -> torch.device:
    parameter = next(network.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _taps_of(network: nn.Module, images: Tensor, paths: tuple[str, ...], where: str) -> FoundTaps:
    own: tuple[str, ...] | None = getattr(network, "tap_paths", None)
    if own is None and not paths:
        return find_taps(network, images, logits_of)
    chosen = paths or tuple(own or ())
    check_taps(network, chosen, where)
    if chosen == own:
        ends = getattr(network, "stage_ends", range(1, len(own) + 2))
        return _Declared(chosen, (), tuple(ends))
    with evaluating(network):
        outputs = run_tapped(network, chosen, images[:2])
    return FoundTaps(chosen, tuple(tuple(feature.shape[1:]) for feature in outputs.features))


@dataclass(frozen=True)
class _Declared(FoundTaps):
    """Taps that a network itself names, with its own stages."""

    declared: tuple[int, ...] = ()

    @property
    def stage_ends(self) -> tuple[int, ...]:
        return self.declared


def _is_channels_last(network: nn.Module, path: str, feature: Tensor, images: Tensor) -> bool:
    """Tell `[B, H, W, C]` from `[B, C, H, W]`.

    By its shape where the image is square, else by what changes with the size of the image, else
    (a network that brings every image to one size) by the layers in the block.
    """
    first, second, third = feature.shape[1:]
    if images.shape[2] == images.shape[3] and (first == second) != (second == third):
        return bool(first == second)  # a square image stays square
    other = _shape_at(network, path, F.interpolate(images, scale_factor=2.0)) or feature.shape[1:]
    changed = tuple(a != b for a, b in zip(feature.shape[1:], other, strict=True))
    if changed == (False, True, True):
        return False
    if changed == (True, True, False):
        return True
    inside = list(network.get_submodule(path).modules())
    of_maps = any(isinstance(module, _CHANNELS_FIRST) for module in inside)
    of_vectors = any(isinstance(module, _CHANNELS_LAST) for module in inside)
    if of_maps != of_vectors:
        return of_vectors
    raise UserError(
        f"tap {path!r} gives each image a tensor of {list(feature.shape[1:])}, of which it cannot "
        "be told where the channels are; tap another block."
    )


class _SeenError(Exception):
    """Ends a run of a network once its tap has been seen."""


def _shape_at(network: nn.Module, path: str, images: Tensor) -> tuple[int, ...] | None:
    """Return the shape of a tap's feature, or None where the network does not get so far."""
    seen: list[tuple[int, ...]] = []

    def hook(module: nn.Module, arguments: Any, output: Tensor) -> None:
        seen.append(tuple(output.shape[1:]))
        raise _SeenError  # layers behind it may want one size alone

    handle = network.get_submodule(path).register_forward_hook(hook)
    try:
        network(images)
    except (_SeenError, RuntimeError, AssertionError, ValueError):
        pass
    finally:
        handle.remove()
    return seen[0] if seen else None
