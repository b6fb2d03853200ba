"""Read archives and compressed files, with a bound on their unpacked size.

A few kilobytes can unpack to a hundred gigabytes. Nothing is written to disk here, so that names
and links within an archive have no effect.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from krscale.errors import UserError
from krscale.foreign import parsing, regular

_SMALL = 2**28
_RATIO = 200
"""A factor that exceeds the compression of images, which is 2 to 20 unless all are alike."""
_MANY_ROWS = 2**20
_BLOCK = 2**20
_MAX_MEMBERS = 10_000
_OPENERS: Mapping[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


def refuse_bomb(where: str, packed: int, unpacked: int) -> None:
    """Refuse a file that unpacks to far more than image files do.

    Args:
        where: The file, for error messages.
        packed: Bytes in the file.
        unpacked: Unpacked size in bytes, according to the file.

    Raises:
        UserError: If the unpacked size is large and more than 200 times that of the file.

    Example:
        >>> refuse_bomb("images.npz", packed=11_000_000, unpacked=55_000_000)
    """
    if unpacked > _SMALL and unpacked > _RATIO * packed:
        raise UserError(
            f"{where}: {packed:,} bytes that unpack to {unpacked:,}, more than {_RATIO} times as "
            "many, which no images do. If it is yours, save it without compression."
        )


def refuse_rows(where: str, num_bytes: int, num_rows: int) -> None:
    """Refuse a table of millions of rows with less than one byte per row.

    A run of equal values takes a few bytes whatever its length, but eight or more bytes per value
    once it is read.

    Args:
        where: The file, for error messages.
        num_bytes: Size of the file.
        num_rows: Number of rows, according to the file.

    Raises:
        UserError: If there are too many rows for images, labels or paths.

    Example:
        >>> refuse_rows("train.parquet", num_bytes=11_000_000, num_rows=60_000)
    """
    if num_rows > max(_MANY_ROWS, num_bytes):
        raise UserError(
            f"{where}: {num_rows:,} rows in {num_bytes:,} bytes, less than a byte for each, which "
            "no images take."
        )


def read_members(path: Path, wanted: set[str], max_bytes: int) -> dict[str, bytes]:
    """Return the contents of files in a tar archive, found by name in any of its folders.

    Args:
        path: The archive, compressed or not. Links in it are not followed.
        wanted: Names of the files, without folders.
        max_bytes: Maximum unpacked size of one file; the whole archive may have twice as much.

    Raises:
        UserError: If the archive is damaged or too large.
    """
    files: dict[str, bytes] = {}
    with parsing(f"data.path: {path}: not a readable archive"), _opened(path) as raw:
        bounded = cast("IO[bytes]", _Bounded(raw, 2 * max_bytes, path))
        with tarfile.open(fileobj=bounded, mode="r|", bufsize=_BLOCK) as archive:
            for number, member in enumerate(archive):
                if number >= _MAX_MEMBERS:
                    raise _too_large(path, f"more than {_MAX_MEMBERS:,} files")
                name = PurePosixPath(member.name).name
                if name in wanted and member.isfile():
                    if member.size > max_bytes:
                        raise _too_large(path, f"{name} has {member.size:,} bytes")
                    content = archive.extractfile(member)
                    files[name] = content.read() if content else b""
    return files


def _opened(path: Path) -> IO[bytes]:
    with regular(path).open("rb") as file:
        first = file.read(8)
    opener = next((how for magic, how in _OPENERS.items() if first.startswith(magic)), open)
    return opener(path, "rb")


class _Bounded:
    """A file that can be read up to a number of bytes."""

    def __init__(self, file: IO[bytes], left: int, path: Path) -> None:
        self.file, self.left, self.path = file, left, path

    def read(self, size: int) -> bytes:
        found = self.file.read(size)
        self.left -= len(found)
        if self.left < 0:
            raise _too_large(self.path, "it unpacks to more than the source has")
        return found


def _too_large(path: Path, found: str) -> UserError:
    return UserError(f"data.path: {path}: not an archive of this source, but too large: {found}.")
