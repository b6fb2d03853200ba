"""Checks of an Arrow stream or schema before its contents are read."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from krscale.errors import UserError

_DICTIONARY, _BATCH = 2, 3
_HEADER_TYPE, _HEADER, _DATA, _COMPRESSION = 1, 2, 1, 3
"""Numbers of fields in Arrow's `Message`, `DictionaryBatch` and `RecordBatch`."""


def refuse_compressed(source: Any, where: str) -> None:
    """Refuse compressed batches: a few bytes can unpack to more than the memory holds.

    Args:
        source: An opened `pyarrow.MemoryMappedFile`; it is left at its beginning.
        where: The file, for error messages.

    Raises:
        UserError: If a batch is compressed; `save_to_disk` never compresses them.
    """
    try:
        messages = pa.ipc.MessageReader.open_stream(source)
        while True:
            try:
                message = messages.read_next_message()
            except StopIteration:
                return
            if _is_compressed(message.metadata.to_pybytes()):
                raise UserError(
                    f"{where}: its batches are compressed, which save_to_disk does not do and "
                    "krscale does not read; save it again without compression."
                )
    finally:
        source.seek(0)


def decode_names(fields: Iterable[Any]) -> None:
    """Decode the names of columns and of their nested fields: Arrow decodes names only on access.

    Args:
        fields: A `pyarrow.Schema`, or the type of a struct.

    Raises:
        UnicodeDecodeError: If a name is not valid text.
    """
    for field in fields:
        str(field.name)
        if pa.types.is_struct(field.type):
            decode_names(field.type)


def _is_compressed(message: bytes) -> bool:
    """Whether a message's metadata (a FlatBuffer) describes a batch with compressed buffers."""
    (root,) = struct.unpack_from("<I", message, 0)
    kind, header = _field(message, root, _HEADER_TYPE), _field(message, root, _HEADER)
    if not kind or not header:
        return False
    table = _pointed(message, header)
    if message[kind] == _DICTIONARY and (data := _field(message, table, _DATA)):
        table = _pointed(message, data)
    elif message[kind] != _BATCH:
        return False
    return _field(message, table, _COMPRESSION) != 0


def _field(message: bytes, table: int, number: int) -> int:
    """Return the offset of a field of a table, 0 if the table lacks it."""
    (back,) = struct.unpack_from("<i", message, table)
    (size,) = struct.unpack_from("<H", message, table - back)
    if 4 + 2 * number >= size:
        return 0
    (offset,) = struct.unpack_from("<H", message, table - back + 4 + 2 * number)
    return table + int(offset) if offset else 0


def _pointed(message: bytes, place: int) -> int:
    return place + int(struct.unpack_from("<I", message, place)[0])
