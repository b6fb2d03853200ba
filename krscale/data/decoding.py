"""PNG and JPEG files as pixels: one shape for all, and a clear word about those that do not fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps

from krscale.config import FilesConfig
from krscale.data.arrow import Images
from krscale.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
PIECE_BYTES = 2**23
"""Pixels that are decoded before they are written: enough to keep all cores busy."""
_MODES = {1: "L", 3: "RGB"}
_DEEP = (
    "I",
    "F",
)  # Pillow's names for more than 8 bits begin so; cutting them down loses nearly all

Encoded = bytes | str
"""What an image file holds, or its path."""
Where = Callable[[], str]
"""Words where an image is; only errors need it, and there are millions of images."""
Place = Callable[[int], str]
"""Words where the image of a number is."""


@dataclass(frozen=True)
class Decoder:
    """StudyScheduler files into pixels.

    Args:
        config: Channels and size that are wanted.
    """

    config: FilesConfig

    def decode(self, encoded: Encoded, where: Where) -> Images:
        """Return the pixels of one image, uint8 `[C, H, W]`.

        Raises:
            UserError: If it cannot be read; says where it is.
        """
        size = self.config.image_size
        try:
            with Image.open(
                BytesIO(encoded) if isinstance(encoded, bytes) else encoded, formats=FORMATS
            ) as image:
                if image.mode.startswith(_DEEP):
                    raise UserError(f"{where()}: more than 8 bits a channel (mode {image.mode}).")
                pixels = image.convert(_MODES[self.config.num_channels])
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"{where()}: not a readable image ({_first_line(error)}).") from None
        if size:
            pixels = ImageOps.fit(pixels, (size, size), Image.Resampling.BILINEAR)
        array = np.asarray(pixels, dtype=np.uint8)
        return array.reshape(*array.shape[:2], -1).transpose(2, 0, 1)

    def pieces(
        self, batches: Iterator[Sequence[Encoded]], shape: tuple[int, ...], place: Place
    ) -> Iterator[Images]:
        """Decode batch by batch on all cores: uint8 `[n, C, H, W]` for each.

        Raises:
            UserError: If an image cannot be read or is not of `shape`; names it.
        """
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            start = 0
            for batch in batches:
                places = [partial(place, start + number) for number in range(len(batch))]
                piece = np.empty((len(batch), *shape), np.uint8)
                decoded = pool.map(self.decode, batch, places)
                for number, pixels in enumerate(decoded):
                    check_shape(pixels.shape, shape, places[number])
                    piece[number] = pixels
                yield piece
                start += len(batch)


def check_shape(found: Sequence[int], expected: Sequence[int], where: Where) -> None:
    """Refuse an image of another size than the first.

    Raises:
        UserError: Naming the image and both sizes.
    """
    if tuple(found) != tuple(expected):
        raise UserError(
            f"{where()}: {_size(found)} pixels, where the first image has {_size(expected)}: all "
            "must be of one size. data.files.image_size scales and cuts them to a square."
        )


def piece_size(shape: Sequence[int]) -> int:
    """Return how many images of a shape make a piece."""
    return max(1, PIECE_BYTES // int(np.prod(shape)))


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[2]}"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
