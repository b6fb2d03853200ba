"""TIFF files that Pillow does not write: colours in separate planes, as scientific programs do."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

_SHORT, _LONG = 3, 4


def tiff(values: npt.NDArray[np.integer], bits: int, *, planes: bool) -> bytes:
    """Encode `[H, W, 3]` values of 8 or 16 bits, uncompressed, in planes or pixel by pixel."""
    height, width, channels = values.shape
    parts = [values[..., channel] for channel in range(channels)] if planes else [values]
    strips = [part.astype(f"<u{bits // 8}").tobytes() for part in parts]
    fields = [(256, width), (257, height), (259, 1), (262, 2), (277, channels), (278, height)]
    start = 8 + 2 + 12 * (len(fields) + 4) + 4  # of what does not fit into a field
    after = start + 2 * channels + 2 * 4 * len(strips)
    firsts = [after + sum(map(len, strips[:number])) for number in range(len(strips))]
    long = struct.Struct(f"<{len(strips)}I")
    tables = [(258, _SHORT, channels, start), (284, _SHORT, 1, 2 if planes else 1)]
    for tag, found, place in (
        (273, firsts, start + 2 * channels),
        (279, list(map(len, strips)), start + 2 * channels + long.size),
    ):
        tables.append((tag, _LONG, len(found), place if len(found) > 1 else found[0]))
    tables += [(tag, _SHORT, 1, value) for tag, value in fields]
    entries = b"".join(struct.pack("<HHII", *entry) for entry in sorted(tables))
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tables)) + entries + bytes(4)
    numbers = struct.pack(f"<{channels}H", *[bits] * channels)
    return head + numbers + long.pack(*firsts) + long.pack(*map(len, strips)) + b"".join(strips)
