"""Where the channels of a tap are: in the second dimension, or in the last one.

Convolutional networks give `[B, C, H, W]`, some transformers `[B, H, W, C]`; tokens are
`[B, T, C]`, rarely `[B, C, T]`. Means over the wrong axes look like features and teach nothing, so
the layout is found out: the network says it, or it is run on images of two sizes (what changes is a
position), or the layers within the block tell how many channels they give. Where none of this
decides, the user does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from krscale.errors import UserError

Layout = Literal["channels_first", "channels_last"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
USUAL: dict[int, Layout] = {3: "channels_last", 4: "channels_first"}
"""What needs no turning, by the number of dimensions."""

Shape = tuple[int, ...]


def usual_layout(feature: Tensor, layout: str) -> Tensor:
    """Return a feature as `[B, C, H, W]` or `[B, T, C]`, whatever its own layout is."""
    if feature.ndim not in USUAL or layout == USUAL[feature.ndim]:
        return feature
    if feature.ndim == 4:
        return feature.permute(0, 3, 1, 2)
    return feature.transpose(1, 2)


def find_layouts(
    model: nn.Module,
    shapes: Mapping[str, Shape],
    others: Mapping[str, Shape] | None,
    declared: str = "",
    where: str = "model",
) -> dict[str, Layout]:
    """Return the layout of every tap that has positions.

    Args:
        model: The network.
        shapes: Shape of each tap's output, by path.
        others: The same for images of another size, of the taps that the network reached with them.
        declared: What the user says; empty finds it out.
        where: The config table of the network, for errors.

    Raises:
        UserError: If nothing decides; names the tap and the setting.
    """
    found: dict[str, Layout] = {}
    for path, shape in shapes.items():
        if len(shape) not in USUAL:
            continue
        layout = (
            _known(declared)
            or _declared(model, path, len(shape))
            or (_by_change(shape, others[path]) if others and path in others else None)
            or _by_layers(model.get_submodule(path), shape)
        )
        if layout is None:
            raise UserError(
                f"{where}.taps: {path!r} gives {list(shape)}, and nothing tells which of these are "
                f"channels. Say it: {where}.tap_layout = 'channels_first' or 'channels_last'."
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


def _by_layers(block: nn.Module, shape: Shape) -> Layout | None:
    """Return the layout whose channels are as many as some layer of the block gives."""
    given = {count for module in block.modules() for count in _channels_of(module)}
    first, last = shape[1] in given, shape[-1] in given
    if first == last:
        return None
    return "channels_first" if first else "channels_last"


def _channels_of(module: nn.Module) -> Sequence[int]:
    if isinstance(module, nn.Linear):
        return (module.out_features,)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d):
        return (module.out_channels,)
    if isinstance(module, nn.LayerNorm):
        return (module.normalized_shape[-1],)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return (module.num_features,)
    return (module.num_channels,) if isinstance(module, nn.GroupNorm) else ()


def other_size(image_shape: Sequence[int]) -> tuple[int, int, int]:
    """Return an image shape of twice the height and width."""
    channels, height, width = image_shape
    return channels, 2 * height, 2 * width


def zeros(model: nn.Module, image_shape: Sequence[int]) -> Tensor:
    """Return a batch of two black images, on the device and in the precision of a network."""
    weights = (p for p in model.parameters() if p.is_floating_point())
    return next(weights, torch.empty(0)).new_zeros(2, *image_shape)
