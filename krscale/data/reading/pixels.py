"""Convert single images and batches from the user's data sets to 8-bit pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from krscale.data.reading.arrays import ROUNDING
from krscale.errors import UserError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Normalisation:
    """Normalisation that was applied to images: `(pixels - mean) / std`, with pixels in 0..1.

    Attributes:
        mean: Mean of each channel, or one number for all.
        std: Standard deviation, likewise.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, given: Any) -> Self:
        """Read `(mean, std)`.

        Raises:
            UserError: If it is not such a pair.
        """
        try:
            mean, std = (tuple(map(float, np.atleast_1d(np.asarray(part)))) for part in given)
        except (TypeError, ValueError):
            mean = std = ()
        finite = all(np.isfinite((*mean, *std)))
        if not mean or len(mean) != len(std) or not finite or min(std) <= 0:
            raise UserError(
                f"normalisation: {given!r}: expected (mean, std), of each channel or one number "
                "for all, as torchvision's Normalize takes them; std is positive."
            )
        return cls(mean, std)

    def undone(self, images: Array, where: str) -> Array:
        """Return pixels in 0..1.

        Args:
            images: `[..., C, H, W]`, or `[..., H, W]` with one number for all channels.
            where: Description of the images, for messages.
        """
        if len(self.mean) == 1:
            scaled: Array = images * np.float32(self.std[0]) + np.float32(self.mean[0])
            return scaled
        if images.ndim < 3 or images.shape[-3] != len(self.mean):
            raise UserError(
                f"{where}: images of shape {list(images.shape)}, but normalisation has "
                f"{len(self.mean)} channels; it is undone for [C, H, W]."
            )
        shape = (-1, 1, 1)
        std, mean = (np.array(part, np.float32).reshape(shape) for part in (self.std, self.mean))
        restored: Array = images * std + mean
        return restored


@dataclass(frozen=True)
class Pixels:
    """8-bit pixels and what they came from.

    Attributes:
        values: uint8, in the shape in which they were given.
        is_float: Whether they were floats in 0..1, or normalised.
        channels_first: Whether the channels are known to come first.
    """

    values: Array
    is_float: bool
    channels_first: bool


def to_pixels(images: Any, where: str, normalisation: Normalisation | None) -> Pixels:
    """Return one image, or a batch of them, as 8-bit pixels.

    Args:
        images: A tensor, an array or a Pillow image.
        where: Description of the images, for messages.
        normalisation: Normalisation that was applied to floats.

    Raises:
        UserError: If `images` is none of these, or its values are neither 0..255 nor floats in
            0..1.
    """
    array, channels_first = _array(images, where)
    if array.dtype.kind == "f":
        return Pixels(_from_floats(array, where, normalisation), True, channels_first)
    if normalisation is not None:
        raise UserError(
            f"{where}: normalisation is given, but images are {array.dtype}, which are not "
            "normalised; leave it out."
        )
    if array.dtype.kind not in "ui" or not array.size:
        raise UserError(f"{where}: images of type {array.dtype}; expected numbers, best uint8.")
    if array.dtype != np.uint8 and (array.min() < 0 or array.max() > 255):
        raise UserError(
            f"{where}: images are {array.dtype} from {array.min()} to {array.max()}; expected "
            "0..255, or floats in 0..1."
        )
    return Pixels(array.astype(np.uint8), False, channels_first)


def _array(images: Any, where: str) -> tuple[Array, bool]:
    """Return an array, and whether its channels are known to come first."""
    if isinstance(images, torch.Tensor):
        tensor = images.detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.float()  # NumPy has no bfloat16
        return tensor.numpy(), True
    if hasattr(images, "getbands"):  # a Pillow image; Pillow need not be installed
        images = images.convert({"1": "L", "P": "RGB"}.get(images.mode, images.mode))
        if images.mode not in ("L", "RGB"):
            # Of these, `convert` cuts values above 255 instead of scaling them.
            deep = "give them as floats in 0..1, e.g. numpy.asarray(image) / 65535 of 16 bits"
            advice = deep if images.mode[0] in "IF" else "convert them to RGB"
            raise UserError(f"{where}: images of Pillow's mode {images.mode}; {advice}.")
        array: Array = np.asarray(images)
        return (array if array.ndim == 2 else np.moveaxis(array, 2, 0)), True
    if isinstance(images, np.ndarray):
        return images, False
    raise UserError(
        f"{where}: images of {type(images).__name__}; expected tensors, arrays or images of Pillow."
    )


def _from_floats(array: Array, where: str, normalisation: Normalisation | None) -> Array:
    pixels = (
        array.astype(np.float32)
        if normalisation is None
        else normalisation.undone(array.astype(np.float32), where)
    )
    least, most = (float(pixels.min()), float(pixels.max())) if pixels.size else (0.0, 0.0)
    if not (least >= -ROUNDING and most <= 1 + ROUNDING):  # also true for NaN
        found = f"{where}: images are floats from {array.min():.3g} to {array.max():.3g}"
        if normalisation is None:
            raise UserError(
                f"{found}; expected 0..1. Where they are normalised, normalisation=(mean, std) "
                "says by what; whole numbers in 0..255 are given as uint8."
            )
        raise UserError(
            f"{found}, which normalisation leads to {least:.3g} to {most:.3g}; expected 0..1. Is "
            "it that of the loader?"
        )
    whole: Array = np.rint(pixels * 255).clip(0, 255).astype(np.uint8)
    return whole


def sizes(shapes: Sequence[tuple[int, ...]]) -> str:
    """Return a text that lists each shape once."""
    return " and ".join(dict.fromkeys(str(list(shape)) for shape in shapes))
