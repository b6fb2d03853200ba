"""Where the channels of a tap are: in the second dimension, or in the last one.

Convolutional networks give `[B, C, H, W]`, some transformers `[B, H, W, C]`; tokens are
`[B, T, C]`, rarely `[B, C, T]`. Means over the wrong axes look like features and teach nothing, so
the layout is found out: the network says it, or it is run on images of two sizes (what changes is a
position), or the outputs of its layers have as many channels and positions in one layout only.
Where none of this decides, the user does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from krscale.errors import UserError
from krscale.knowledge.hooks import Hook

Layout = Literal["channels_first", "channels_last"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
USUAL: dict[int, Layout] = {3: "channels_last", 4: "channels_first"}
"""What needs no turning, by the number of dimensions."""
_ON_MAPS = (
    nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.FractionalMaxPool2d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d, nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle,
)  # fmt: skip
"""Layers without channels of their own that take `[B, C, H, W]` only."""
BATCH = 2
"""Images that a network is run on to see its shapes."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LayerOutput:
    """How many numbers a layer gave for one image.

    Attributes:
        channels: Along the axis of the layer's features.
        positions: Along all its other axes.
        mixes_either: Whether layers of this kind are used over positions as well, as those that mix
            tokens are.
    """

    channels: int
    positions: int
    mixes_either: bool


@dataclass(frozen=True)
class TapShape:
    """What running a network showed of one of its taps.

    Attributes:
        shape: Of the output, the batch included.
        other: The same for images of another size; None where the network did not get there.
        layers: Outputs of the network's layers until the tap's block ended.
    """

    shape: Shape
    other: Shape | None = None
    layers: frozenset[LayerOutput] = frozenset()


def usual_layout(feature: Tensor, layout: str) -> Tensor:
    """Return a feature as `[B, C, H, W]` or `[B, T, C]`, whatever its own layout is."""
    if feature.ndim not in USUAL or layout == USUAL[feature.ndim]:
        return feature
    if feature.ndim == 4:
        return feature.permute(0, 3, 1, 2)
    return feature.transpose(1, 2)


def readable_modules(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield path and module of all whose output can be read; those of TorchScript take no hook.

    Such a part may stand in a network: transforms that were scripted, in front of it.
    """
    for path, module in network.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            yield path, module


class LayerTrace:
    """Keeps what the layers of a network give while it runs with these hooks.

    Attributes:
        until: By path, what had been given until that block ended, for the last time.

    Args:
        network: Not wrapped.
        paths: Blocks of it.
    """

    def __init__(self, network: nn.Module, paths: Sequence[str]) -> None:
        self.network, self.paths = network, tuple(paths)
        self.until: dict[str, frozenset[LayerOutput]] = {}
        self._given: set[LayerOutput] = set()

    def hooks(self) -> list[tuple[nn.Module, Hook]]:
        """Return what to hook (`hooked`) while the network runs.

        Layers come first, as one of them may be a tap itself.
        """
        layers = [(module, self._add) for _, module in readable_modules(self.network)]
        ends = [(self.network.get_submodule(p), partial(self._end, p)) for p in self.paths]
        return [*layers, *ends]

    def _add(self, module: nn.Module, arguments: Any, output: Any) -> None:
        channels = _channels_of(module, output) if isinstance(output, Tensor) else 0
        positions, rest = divmod(output.numel(), channels * BATCH) if channels else (0, 1)
        if not rest:
            self._given.add(LayerOutput(channels, positions, _mixes_either(module)))

    def _end(self, path: str, module: nn.Module, arguments: Any, output: Any) -> None:
        self.until[path] = frozenset(self._given)


def check_rows(shapes: Mapping[str, Shape], where: str) -> None:
    """Refuse taps whose first dimension are not the images.

    Args:
        shapes: Of what each tap gives for `BATCH` images, by path.
        where: The config table of the network, for errors.

    Raises:
        UserError: Naming the tap.

    Example:
        >>> check_rows({"layers.0": (16, 2, 8)}, "teacher")
        Traceback (most recent call last):
        krscale.errors.UserError: teacher.taps: 'layers.0' gives [16, 2, 8] for 2 images, ...
    """
    for path, shape in shapes.items():
        if shape[:1] != (BATCH,):
            raise UserError(
                f"{where}.taps: {path!r} gives {list(shape)} for {BATCH} images, and the images "
                "must come first: [B, T, C], where layers were made with batch_first=True. Tap "
                "another block."
            )


def find_layouts(
    model: nn.Module, taps: Mapping[str, TapShape], declared: str = "", where: str = "model"
) -> dict[str, Layout]:
    """Return the layout of every tap that has positions.

    Args:
        model: The network.
        taps: What was seen of each tap, by path.
        declared: What the user says; empty finds it out.
        where: The config table of the network, for errors.

    Raises:
        UserError: If nothing decides; names the tap and the setting.
    """
    found: dict[str, Layout] = {}
    for path, tap in taps.items():
        if len(tap.shape) not in USUAL:
            continue
        layout = (
            _known(declared)
            or _declared(model, path, len(tap.shape))
            or (_by_change(tap.shape, tap.other) if tap.other else None)
            or _by_layers(tap)
        )
        if layout is None:
            raise UserError(
                f"{where}.taps: {path!r} gives {list(tap.shape)}, and nothing tells which of these "
                f"are channels. Say it: {where}.tap_layout = 'channels_first' or 'channels_last'."
            )
        found[path] = layout
    return found


def _known(name: Any) -> Layout | None:
    return next((layout for layout in LAYOUTS if layout == name), None)


def _declared(model: nn.Module, path: str, ndim: int) -> Layout | None:
    """Return what the block or the network says: `tap_layout`, or timm's `output_fmt`."""
    for module in (model.get_submodule(path), model):
        if layout := _known(getattr(module, "tap_layout", "")):
            return layout
    said = str(getattr(model, "output_fmt", ""))
    by_format: dict[str, Layout] = {"NHWC": "channels_last", "NCHW": "channels_first"}
    return by_format.get(said) if ndim == 4 else None


def _by_change(shape: Shape, other: Shape) -> Layout | None:
    """Return the layout that explains what changes with the size of the image."""
    if len(shape) != len(other):
        return None
    positions = {axis for axis in range(1, len(shape)) if shape[axis] != other[axis]}
    if len(shape) == 3:
        by_axis: dict[int, Layout] = {1: "channels_last", 2: "channels_first"}
        return by_axis[positions.pop()] if len(positions) == 1 else None
    if positions == {2, 3} or (not positions and shape[2:] == (1, 1) != shape[1:3]):
        return "channels_first"
    if positions == {1, 2} or (not positions and shape[1:3] == (1, 1) != shape[2:]):
        return "channels_last"
    return None


def _by_layers(tap: TapShape) -> Layout | None:
    """Return the only layout in which outputs of layers have the tap's channels and positions.

    A layer that mixes tokens has them the other way round. So one layer of another layout than the
    rest leaves it open, and so do layers that are used over either axis, without any other kind.
    """
    fitting = [(layer, layout) for layer in tap.layers for layout in _fitting(layer, tap.shape)]
    layouts = {layout for _, layout in fitting}
    if len(layouts) != 1 or all(layer.mixes_either for layer, _ in fitting):
        return None
    return layouts.pop()


def _fitting(layer: LayerOutput, shape: Shape) -> list[Layout]:
    if layer.channels * layer.positions * BATCH != math.prod(shape):  # windows may be in the batch
        return []
    by_axis: dict[int, Layout] = {1: "channels_first", -1: "channels_last"}
    return [layout for axis, layout in by_axis.items() if shape[axis] == layer.channels]


def _channels_of(module: nn.Module, output: Tensor) -> int:
    """Return how many channels a layer gives, whichever axis they are on; 0 where it is unknown."""
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, _ConvNd):
        return module.out_channels
    if isinstance(module, _NormBase):
        return module.num_features
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    if isinstance(module, _ON_MAPS):
        return output.shape[1] if output.ndim == 4 else 0
    normalised = getattr(module, "normalized_shape", ())  # norms of layers, by whatever class
    sides = (normalised,) if isinstance(normalised, int) else tuple(normalised)
    return int(sides[0]) if len(sides) == 1 else 0


def _mixes_either(module: nn.Module) -> bool:
    """Return whether layers of this kind are used over positions as well as over channels."""
    if isinstance(module, nn.Conv1d):
        return module.kernel_size == (1,)
    return isinstance(module, nn.Linear)


def other_size(image_shape: Sequence[int]) -> tuple[int, int, int]:
    """Return an image shape of twice the height and width."""
    channels, height, width = image_shape
    return channels, 2 * height, 2 * width


def zeros(model: nn.Module, image_shape: Sequence[int]) -> Tensor:
    """Return a batch of two black images, on the device and in the precision of a network."""
    weights = (p for p in model.parameters() if p.is_floating_point())
    like = next(weights, torch.empty(0))
    # Not of the weight's own class: sharded over workers (DTensor), it would make such an image.
    return torch.zeros(BATCH, *image_shape, dtype=like.dtype, device=like.device)
