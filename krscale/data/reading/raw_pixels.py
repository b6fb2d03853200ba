"""Raw pixels in a Parquet column: fixed-size binary of uint8, channel by channel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from krscale.config import FilesConfig
from krscale.data.arrow import Images
from krscale.data.reading.arrays import CHANNELS
from krscale.data.reading.own_files import ImageLocations
from krscale.errors import UserError


def checked_shape(settings: FilesConfig, width: int) -> tuple[int, ...]:
    """Return `data.files.raw_shape` if it matches images of `width` bytes.

    Raises:
        UserError: If it does not match or is not supported.
    """
    shape = settings.raw_shape
    if len(shape) != 3 or int(np.prod(shape)) != width:
        raise UserError(
            f"data.files.raw_shape: column {settings.image_column!r} holds {width} bytes "
            f"of raw pixels, which need a shape [C, H, W] of so many (got {list(shape)})."
        )
    if shape[0] not in CHANNELS:
        last = [shape[2], *shape[:2]]
        hint = f" Did you mean {last}?" if shape[2] in CHANNELS else ""
        raise UserError(
            f"data.files.raw_shape: [C, H, W] = {list(shape)}: images of {shape[0]} channels; "
            f"1 (grey) or 3 are read, channel by channel.{hint}"
        )
    if settings.image_size:
        raise UserError("data.files.image_size: raw pixels cannot be scaled; leave it 0.")
    return shape


def raw_images(
    column: Any, shape: tuple[int, ...], locations: ImageLocations, start: int
) -> Images:
    """Return a column's images `[n, *shape]`, sharing its memory.

    Args:
        column: An Arrow array of fixed-size binary.
        shape: `[C, H, W]`.
        locations: Describes where an image is.
        start: Number of the column's first image in its split.

    Raises:
        UserError: If a row has no image, or the column is of another type.
    """
    refuse_encoded(column, locations(start))
    _check_present(column, locations, start)
    width, first = column.type.byte_width, column.offset
    pixels = np.frombuffer(column.buffers()[1], np.uint8)
    return pixels[first * width : (first + len(column)) * width].reshape(-1, *shape)


def refuse_encoded(column: Any, where: str) -> None:
    """Refuse a column that does not hold raw pixels although `raw_shape` is set."""
    if not pa.types.is_fixed_size_binary(column.type):
        raise UserError(
            f"{where}: data.files.raw_shape is set, but the column is of type {column.type}; "
            "leave it empty for encoded images."
        )


def _check_present(column: Any, locations: ImageLocations, start: int) -> None:
    if column.null_count:
        first = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0]
        raise UserError(f"{locations(start + int(first))}: no image (null).")
