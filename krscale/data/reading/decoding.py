"""Decode image files to pixels of one shape, and report the images that do not fit."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageColor, ImageOps

from krscale.config import FilesConfig
from krscale.data.arrow import Images
from krscale.data.seen import Fault, Seen
from krscale.errors import UserError, first_line
from krscale.foreign import regular

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
PIECE_BYTES = 2**23
"""Bytes of pixels that are decoded before they are written: enough to keep all cores busy."""
IGNORED = "ignore"
"""The value of `data.background` that takes colours as they are and ignores transparency."""
_LARGE, _RATIO = 2**25, 200
"""Pixels allowed in a file of any size, and pixels allowed per byte in images with more."""
_MISSING = "no image (null)"
_DAMAGE = (
    OSError, SyntaxError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
    RuntimeError, EOFError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
"""Exceptions that Pillow raises on damaged headers, in addition to its own error messages."""
_MODES = {1: "L", 3: "RGB"}
_LEVELS = {"L;2": 85, "L;4": 17}
"""Steps between the grey values that Pillow reads from 2 and 4 bits; a key is a level number."""
_DEEP_GREY = ("PNG", "PPM")
"""Formats whose 16 bits Pillow returns as 32; no file of these formats has more than 16."""
_DEEP_COLOUR = "RGB;16B"
"""Pillow keeps the upper bytes of these, so a key of three times 16 bits matches no pixel."""
_COLOURS = ("RGB", "RGBA")
_PLANES = "16 bits a channel in separate planes; save it with the channels of each pixel together"
_BITS_PER_SAMPLE = 258  # a tag of TIFF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""The operation that turns an image upright, by its orientation (Exif 2.32, tag 0x0112)."""

Encoded = bytes | str | None
"""Contents of an image file, or its path; None for a row without an image."""
Place = Callable[[int], str]
"""Describes where the image with a given number is."""


@dataclass(frozen=True)
class Decoded:
    """One image.

    Attributes:
        pixels: uint8 `[C, H, W]`; None if it cannot be read.
        mode: Pillow's name for the colour mode of the file.
        size: `(H, W)` as the file has it.
        transparent: Whether it was composited on the background.
        brightest: Largest 16-bit value, as far as it is known; None for images of 8 bits.
        keyed: Whether the file names a transparent colour that cannot be matched.
        orientation: Orientation from its EXIF data, 1 to 8; 1 if it is upright.
        problem: Why it cannot be read.
    """

    pixels: Images | None
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    transparent: bool = False
    brightest: int | None = None
    keyed: bool = False
    orientation: int = 1
    problem: str = ""


@dataclass(frozen=True)
class Decoder:
    """Decodes files to pixels.

    Attributes:
        config: Channels and size that are wanted.
        background: A colour, or `"ignore"`; see `data.background`.
        seen: Records the properties and faults of all images.
    """

    config: FilesConfig
    background: str
    seen: Seen = field(default_factory=Seen)

    def decode(self, encoded: Encoded) -> Decoded:
        """Decode one image."""
        if encoded is None:
            return Decoded(None, problem=_MISSING)
        try:
            if isinstance(encoded, bytes):
                source: BytesIO | str = BytesIO(encoded)
                size = len(encoded)
            else:
                source, size = encoded, regular(Path(encoded)).stat().st_size
            if not size:
                return Decoded(None, problem="it is empty (0 bytes)")
            with Image.open(source, formats=FORMATS) as image:
                if image.width * image.height > max(_LARGE, _RATIO * size):
                    return Decoded(None, problem=_bomb(image, size))
                return self._read(image)
        except _DAMAGE as error:
            return Decoded(None, problem=first_line(error))

    def first_shape(self, images: Iterator[Encoded], place: Place) -> tuple[int, ...]:
        """Return the shape of the first image that can be read.

        Raises:
            UserError: If none can be read.
        """
        problems = []
        for encoded in images:
            found = self.decode(encoded)
            if found.pixels is not None:
                return found.pixels.shape
            problems.append(found.problem)
        raise UserError(
            f"{place(0)}: {_unreadable(problems[0])}, nor is any other of the {len(problems)} "
            "images there readable."
        )

    def pieces(
        self,
        batches: Iterator[Sequence[Encoded]],
        shape: tuple[int, ...],
        place: Place,
        split: str = "train",
    ) -> Iterator[Images]:
        """Decode batch by batch on all cores: uint8 `[n, C, H, W]` for each.

        An image that cannot be read, or is not of `shape`, becomes black and is added to `seen` as
        a fault, so that all faults can be reported together at the end.
        """
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            start = 0
            for batch in batches:
                piece = np.zeros((len(batch), *shape), np.uint8)
                for number, found in enumerate(pool.map(self.decode, batch)):
                    self._note(found)
                    fault = _fault(found, shape)
                    if fault:
                        at, unreadable = place(start + number), found.pixels is None
                        faults = self.seen.unreadable if unreadable else self.seen.misfits
                        faults.append(Fault(split, start + number, at, fault))
                    elif found.pixels is not None:
                        piece[number] = found.pixels
                yield piece
                start += len(batch)

    def _read(self, opened: Image.Image) -> Decoded:
        image = opened
        mode, size = image.mode, (image.height, image.width)
        if _in_planes(image):
            return Decoded(None, mode, size, problem=_PLANES)
        deep_colour = mode in _COLOURS and ";16" in _raw_mode(image)
        wanted, brightest = _MODES[self.config.num_channels], None
        transparent = keyed = False
        if mode.startswith("I;16") or (mode == "I" and image.format in _DEEP_GREY):
            image, brightest, transparent = self._from_16_bits(image)
        elif mode[0] in "IF":  # Pillow's modes of 32 bits; 8 bits would lose nearly all
            return Decoded(None, mode, size, problem=f"32 bits a channel (mode {mode})")
        elif self.background != IGNORED and image.has_transparency_data:
            keyed = not _scale_key(image)
            image, transparent = self._on_background(image)
        pixels = image.convert(wanted)
        if deep_colour:
            brightest = _brightest(opened)
        orientation = _orientation(opened)
        if self.config.exif_orientation and orientation in _TURNS:
            pixels = pixels.transpose(_TURNS[orientation])
        if side := self.config.image_size:
            pixels = ImageOps.fit(pixels, (side, side), Image.Resampling.BILINEAR)
        array = np.asarray(pixels, dtype=np.uint8)
        array = array.reshape(*array.shape[:2], -1).transpose(2, 0, 1)
        return Decoded(array, mode, size, transparent, brightest, keyed, orientation)

    def _from_16_bits(self, image: Image.Image) -> tuple[Image.Image, int, bool]:
        """Return the upper eight bits, as Pillow does for colours with 16 bits."""
        values = np.asarray(image).astype(np.int64)
        clear = np.zeros(values.shape, bool)
        if self.background != IGNORED and "transparency" in image.info:
            clear = values == image.info["transparency"]
        levels = (values >> 8).clip(0, 255).astype(np.uint8)
        found = Image.fromarray(levels).convert("RGB")
        if clear.any():
            found.paste(ImageColor.getrgb(self.background), mask=Image.fromarray(clear))
        return found, int(values.max(initial=0)), bool(clear.any())

    def _on_background(self, image: Image.Image) -> tuple[Image.Image, bool]:
        layer = image.convert("RGBA")
        if layer.getchannel("A").getextrema()[0] == 255:
            return image, False
        below = Image.new("RGBA", layer.size, ImageColor.getrgb(self.background))
        return Image.alpha_composite(below, layer), True

    def _note(self, found: Decoded) -> None:
        if found.pixels is None:
            return
        self.seen.modes[found.mode] += 1
        self.seen.sizes[found.size] += 1
        self.seen.transparent += found.transparent
        self.seen.keyed += found.keyed
        if found.orientation in _TURNS:
            self.seen.turned += self.config.exif_orientation
            self.seen.as_stored += not self.config.exif_orientation
        if found.brightest is not None:
            self.seen.deep += 1
            self.seen.brightest = max(self.seen.brightest, found.brightest)


def piece_size(shape: Sequence[int]) -> int:
    """Return how many images of a shape make a piece."""
    return max(1, PIECE_BYTES // int(np.prod(shape)))


def _fault(found: Decoded, shape: Sequence[int]) -> str:
    """Return what is wrong with an image; empty if nothing is."""
    if found.pixels is None:
        return _unreadable(found.problem)
    if found.pixels.shape != tuple(shape):
        size, first = found.pixels.shape[1:], shape[1:]
        return f"{size[0]}x{size[1]} pixels, where the first image has {first[0]}x{first[1]}"
    return ""


def _unreadable(problem: str) -> str:
    return problem if problem == _MISSING else f"not a readable image ({problem})"


def _bomb(image: Image.Image, size: int) -> str:
    return (
        f"{image.height}x{image.width} pixels in {size:,} bytes, more than {_RATIO} to a byte; if "
        "it is yours, save it smaller"
    )


def _raw_mode(image: Image.Image) -> str:
    """Return the mode in which a file stores its pixels; empty if Pillow does not provide it.

    Call this before the pixels are read: afterwards, Pillow no longer provides it.
    """
    tiles = getattr(image, "tile", ())
    arguments = tiles[0][3] if tiles else ""
    found = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return found if isinstance(found, str) else ""


def _in_planes(image: Image.Image) -> bool:
    """Whether a TIFF has 16-bit colours in planes, whose bytes Pillow reads as pixels of 8 bits."""
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, ())
    return 16 in np.atleast_1d(bits) and len(image.getbands()) > 1 == len(_raw_mode(image))


def _brightest(image: Image.Image) -> int:
    """Return the largest value that colours of 16 bits may have, as only upper bytes are known."""
    return (int(np.asarray(image)[..., :3].max(initial=0)) << 8) + 255


def _scale_key(image: Image.Image) -> bool:
    """Scale the transparent level of a PNG to Pillow's values; return False if that is impossible.

    Call this before the pixels are read: afterwards, Pillow no longer provides the storage mode.
    """
    key = image.info.get("transparency")
    kept = _raw_mode(image) if image.format == "PNG" else ""
    if isinstance(key, int) and kept in _LEVELS:
        image.info["transparency"] = key * _LEVELS[kept]
    if key is None or kept != _DEEP_COLOUR:
        return True
    del image.info["transparency"]
    return False


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image that was read; 1 if its EXIF data are damaged."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DAMAGE:
        return 1
    return found if found in _TURNS else 1
