"""Images and labels that are already arrays: from NumPy files, IDX files or a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from krscale.config import DataConfig
from krscale.data.arrow import Images, Split
from krscale.data.reading.classes import Values, alike
from krscale.data.reading.label_column import whole_numbers
from krscale.data.reading.naming import Written, read_labels
from krscale.data.seen import nearly_black
from krscale.data.source import Place, SourceData, SplitName
from krscale.errors import UserError
from krscale.foreign import parsing

Array = npt.NDArray[Any]
CHANNELS = (1, 3)
ROUNDING = 0.004
"""How far floats may lie outside 0..1 because of rounding: one step of 8 bits."""
_CHUNK = 4096  # images that are converted at once: a float array takes four times the memory


@dataclass(frozen=True)
class Arrays:
    """Images and labels of one split as they were found.

    Attributes:
        images: `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]`.
        labels: `[N]` or `[N, 1]`.
        where: Description of what they were read from.
        names: Class names that come with them, for the numbers from 0; empty if there are none.
    """

    images: Array
    labels: Array
    where: str
    names: tuple[str, ...] = ()


def source_data(splits: Mapping[SplitName, Arrays], config: DataConfig, where: str) -> SourceData:
    """Return arrays as the data of a source.

    Args:
        splits: At least `"train"`.
        config: The data section.
        where: Description of the source, for messages.

    Raises:
        UserError: If they are not images and labels.
    """
    places: dict[SplitName, Place] = {n: _Rows(arrays.where) for n, arrays in splits.items()}
    classes, labels = read_labels(
        {n: Written(_labels(arrays), places[n], arrays.names) for n, arrays in splits.items()},
        config,
    )
    images, notes = to_images(splits, config.files.channels, where)
    found: dict[SplitName, Split] = {}
    for name, arrays in splits.items():
        if len(images[name]) != len(labels[name]):
            raise UserError(
                f"{arrays.where}: {len(images[name])} images, but {len(labels[name])} labels."
            )
        found[name] = Split(images[name], labels[name])
    return SourceData(classes, found, places, (*notes, *alike(classes, where)))


def to_images(
    splits: Mapping[SplitName, Arrays], channels: str, where: str
) -> tuple[dict[SplitName, Images], tuple[str, ...]]:
    """Return the images of all splits as uint8 `[N, C, H, W]`, and notes on their conversion.

    All splits are converted in the same way. The value range is taken from the minimum and maximum
    over all splits, since the images of one split may be darker than those of another.

    Args:
        splits: Images `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]`: uint8, other whole numbers or
            floats in 0..255, floats in 0..1, or uint16.
        channels: `"first"`, `"last"`, or `"auto"`, which selects the axis of length 1 or 3.
        where: Description of the source, for messages.

    Raises:
        UserError: If shape or values are not those of images, or splits differ in type.
    """
    found = {n: _four_axes(arrays.images, channels, arrays.where) for n, arrays in splits.items()}
    types = {name: array.dtype for name, array in found.items()}
    if len({kind.newbyteorder("=") for kind in types.values()}) > 1:
        listed = ", ".join(f"{name} {kind}" for name, kind in types.items())
        raise UserError(
            f"{where}: images of the splits differ in type: {listed}. Make them one, with values "
            "of one scale."
        )
    convert, note = _conversion(list(found.values()), where)
    images = {name: _convert(array, convert) for name, array in found.items()}
    return images, (note,) if note else ()


def _four_axes(array: Array, channels: str, where: str) -> Array:
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4:
        return _channels_first(array, channels, where)
    raise UserError(
        f"{where}: images of shape {list(array.shape)}; expected [N, H, W], [N, H, W, C] or "
        "[N, C, H, W]."
    )


def _convert(array: Array, convert: Callable[[Array], Array]) -> Images:
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    images = np.empty(array.shape, np.uint8)
    for start in range(0, len(array), _CHUNK):
        images[start : start + _CHUNK] = convert(array[start : start + _CHUNK])
    return images


def _channels_first(array: Array, channels: str, where: str) -> Array:
    first, last = array.shape[1] in CHANNELS, array.shape[3] in CHANNELS
    if channels == "auto" and first == last:
        problem = "two axes may be the channels" if first else "no axis is 1 or 3 long"
        raise UserError(
            f"{where}: images of shape {list(array.shape)}: {problem}; 1 or 3 channels are read. "
            "data.files.channels = 'first' or 'last' says where they are."
        )
    is_last = last if channels == "auto" else channels == "last"
    found = np.moveaxis(array, 3, 1) if is_last else array
    if found.shape[1] not in CHANNELS:
        raise UserError(f"{where}: images of {found.shape[1]} channels; 1 (grey) or 3 are read.")
    return found


def _conversion(arrays: Sequence[Array], where: str) -> tuple[Callable[[Array], Array], str]:
    """Return the function that maps the values of all splits to 0..255, and a note about it."""
    kind = arrays[0].dtype.newbyteorder("=")  # byte order does not matter
    if kind.kind not in "uif":
        raise UserError(f"{where}: images of type {kind}; expected numbers, best uint8.")
    filled = [array for array in arrays if array.size]
    # NumPy's extremes are NaN if any value is; Python's `min` and `max` depend on the order.
    least = float(np.min([array.min() for array in filled])) if filled else 0.0
    most = float(np.max([array.max() for array in filled])) if filled else 0.0
    found = f"{kind} from {least:g} to {most:g}"
    if kind == np.uint16 and most > 255:
        return (
            lambda part: part >> 8,
            f"{where}: images are {found}; scaled from 0..65535 to 0..255.{nearly_black(most)}",
        )
    if kind.kind == "f" and least >= -ROUNDING and most <= 1 + ROUNDING:
        return (
            lambda part: np.rint(part * 255).clip(0, 255),
            f"{where}: images are {found}; scaled to 0..255.",
        )
    if least >= 0 and most <= 255 and (kind.kind != "f" or all(map(_whole, arrays))):
        dark = "all are nearly black. Where 1 is to be white, give floats, or 0 and 255"
        return lambda part: part, (f"{where}: images are {found}: {dark}." if most <= 1 else "")
    if least >= 0 and 16 < most <= 255:  # standardised images never reach such values
        raise UserError(
            f"{where}: images are {found}, some with a fraction, as scaling leaves them; whole "
            "numbers in 0..255 are read. Round them: numpy.rint(images).astype('uint8')."
        )
    raise UserError(
        f"{where}: images are {found}; expected 0..255 (best uint8), or floats in 0..1. Values "
        "that are normalised already are not read: give them as they were before."
    )


def _whole(array: Array) -> bool:
    chunks = (array[start : start + _CHUNK] for start in range(0, len(array), _CHUNK))
    return all(bool((chunk == np.rint(chunk)).all()) for chunk in chunks)


def _labels(arrays: Arrays) -> Values:
    labels = arrays.labels
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise UserError(
            f"{arrays.where}: labels of shape {list(labels.shape)}; expected one for each image: "
            "[N] or [N, 1]."
        )
    if labels.dtype.kind in "USO":
        with parsing(f"{arrays.where}: labels cannot be read"):
            return np.array([_text(label, arrays.where) for label in labels], dtype=object)
    if labels.dtype.kind in "uifb":
        return whole_numbers(labels, _Rows(arrays.where))
    raise UserError(
        f"{arrays.where}: labels of type {labels.dtype}; expected whole numbers or text."
    )


def as_text(value: Any) -> str:
    """Return a label or a name as text: byte strings are decoded as UTF-8."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _text(label: Any, where: str) -> str:
    if isinstance(label, bytes):
        return as_text(label)
    if not isinstance(label, str):
        raise UserError(f"{where}: the label {label!r} is no text, where others are.")
    return str(label)  # the repr of NumPy's text is `np.str_('ant')`


@dataclass(frozen=True)
class _Rows:
    """Describes where an image of an array is."""

    where: str

    def __call__(self, number: int) -> str:
        return f"{self.where}: image {number}"
