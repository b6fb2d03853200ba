"""PNG files that Pillow does not write: grey of few bits, 16-bit colours, a transparent colour."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

GREY, RGB, GREY_ALPHA, RGBA = 0, 2, 4, 6


def png(
    values: npt.NDArray[np.integer], colour: int, *, key: tuple[int, ...] = (), bits: int = 16
) -> bytes:
    """Encode `[H, W, C]` values of `bits` bits each; `key` is the transparent value."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + _packed(row.ravel(), bits) for row in values)
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    clear = _chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)) if key else b""
    body = _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + clear + body


def _packed(row: npt.NDArray[np.integer], bits: int) -> bytes:
    if bits == 16:
        return row.astype(">u2").tobytes()
    each = np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :]
    return np.packbits(each).tobytes()


def _chunk(name: bytes, content: bytes) -> bytes:
    body = name + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))
