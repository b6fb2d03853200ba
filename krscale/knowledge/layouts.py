"""The axis of a tap's channels: the second dimension or the last one.

Convolutional networks give `[B, C, H, W]`, some transformers `[B, H, W, C]`; tokens are
`[B, T, C]`, rarely `[B, C, T]`. Means over the wrong axes look like features but teach nothing, so
the layout is determined in one of three ways. The network declares it, or it is run on images of
two sizes (axes that change are positions), or the outputs of its layers match the channels and
positions in one layout only. If none of these decides, the user must set the layout.
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
"""The layouts that need no transposition, by the number of dimensions."""
_ON_MAPS = (
    nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.FractionalMaxPool2d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d, nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle,
)  # fmt: skip
"""Layers without channels of their own that take `[B, C, H, W]` only."""
BATCH = 2
"""Number of images that a network is run on to get its shapes."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LayerOutput:
    """The size of a layer's output for one image.

    Attributes:
        channels: Size of the axis of the layer's features.
        positions: Product of the sizes of all its other axes.
        mixes_either: Whether layers of this kind may also act over positions, as token-mixing
            layers do.
    """

    channels: int
    positions: int
    mixes_either: bool


@dataclass(frozen=True)
class TapShape:
    """The shapes that running a network gave for one of its taps.

    Attributes:
        shape: Shape of the output, with the batch dimension.
        other: The same for images of another size; None if the network did not reach the tap.
        layers: Outputs of the network's layers up to the end of the tap's block.
    """

    shape: Shape
    other: Shape | None = None
    layers: frozenset[LayerOutput] = frozenset()


def usual_layout(feature: Tensor, layout: str) -> Tensor:
    """Return a feature as `[B, C, H, W]` or `[B, T, C]`, from either layout."""
    if feature.ndim not in USUAL or layout == USUAL[feature.ndim]:
        return feature
    if feature.ndim == 4:
        return feature.permute(0, 3, 1, 2)
    return feature.transpose(1, 2)


def readable_modules(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield path and module of all modules that accept hooks; those of TorchScript do not.

    A network may contain such a part: scripted transforms in front of it.
    """
    for path, module in network.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            yield path, module


class LayerTrace:
    """Records the outputs of a network's layers while it runs with these hooks.

    Attributes:
        until: By path, the outputs recorded until that block ended for the last time.

    Args:
        network: The network, not wrapped.
        paths: Paths of blocks in it.
    """

    def __init__(self, network: nn.Module, paths: Sequence[str]) -> None:
        self.network, self.paths = network, tuple(paths)
        self.until: dict[str, frozenset[LayerOutput]] = {}
        self._given: set[LayerOutput] = set()

    def hooks(self) -> list[tuple[nn.Module, Hook]]:
        """Return the modules and hooks (for `hooked`) to be active while the network runs.

        Hooks of layers come first, since a layer may be a tap itself.
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
    """Refuse taps whose first dimension is not the batch.

    Args:
        shapes: Shape of each tap's output for `BATCH` images, by path.
        where: The config table of the network, for errors.

    Raises:
        UserError: With the name of the tap.

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
        taps: The shapes found for each tap, by path.
        declared: The layout set by the user; if empty, it is determined automatically.
        where: The config table of the network, for errors.

    Raises:
        UserError: If the layout cannot be determined; the message names the tap and the setting.
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
    """Return the layout declared by block or network: `tap_layout`, or timm's `output_fmt`."""
    for module in (model.get_submodule(path), model):
        if layout := _known(getattr(module, "tap_layout", "")):
            return layout
    said = str(getattr(model, "output_fmt", ""))
    by_format: dict[str, Layout] = {"NHWC": "channels_last", "NCHW": "channels_first"}
    return by_format.get(said) if ndim == 4 else None


def _by_change(shape: Shape, other: Shape) -> Layout | None:
    """Return the layout consistent with the axes that change with the image size."""
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
    """Return the only layout in which outputs of layers match the tap's channels and positions.

    For a layer that mixes tokens, the two axes are swapped. The layout therefore stays undecided
    if any layer matches the other layout, or if all matching layers are of kinds that may act over
    either axis.
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
    """Return the number of channels of a layer's output, on whichever axis; 0 if unknown."""
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
    normalised = getattr(module, "normalized_shape", ())  # layer norms of any class
    sides = (normalised,) if isinstance(normalised, int) else tuple(normalised)
    return int(sides[0]) if len(sides) == 1 else 0


def _mixes_either(module: nn.Module) -> bool:
    """Return whether layers of this kind may act over positions as well as over channels."""
    if isinstance(module, nn.Conv1d):
        return module.kernel_size == (1,)
    return isinstance(module, nn.Linear)


def other_size(image_shape: Sequence[int]) -> tuple[int, int, int]:
    """Return an image shape with twice the height and width."""
    channels, height, width = image_shape
    return channels, 2 * height, 2 * width


def zeros(model: nn.Module, image_shape: Sequence[int]) -> Tensor:
    """Return a batch of two black images, with the device and precision of a network."""
    weights = (p for p in model.parameters() if p.is_floating_point())
    like = next(weights, torch.empty(0))
    # Not `new_zeros` of a weight: one sharded over workers (DTensor) would give sharded images.
    return torch.zeros(BATCH, *image_shape, dtype=like.dtype, device=like.device)
