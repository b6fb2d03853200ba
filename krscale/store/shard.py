"""Shards: the Arrow files of a store, each whole or absent.

The rows of one view of consecutive samples are one Arrow IPC file. It is written in one piece and
its name ends in its checksum, so that the continuation of an interrupted build can tell which
shards are whole without any other record.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from krscale.errors import DiskFullError
from krscale.files import sha256, write_atomic
from krscale.foreign import is_file, parsing, regular
from krscale.store.layout import AnyLayout, FeatureLayout, WhereLayout
from krscale.store.rows import Rows

_FACTS = b"krscale"
_VALUES, _CODES = ("probabilities", "spans", "features", "where"), ("classes", "levels")
_NAMED_DIGITS = 16


class ShardId(NamedTuple):
    """Identity of a shard: its view, and its number among the shards of that view."""

    view: int
    number: int

    @property
    def stem(self) -> str:
        """Path within the store, without checksum and suffix."""
        return f"view-{self.view:04d}/shard-{self.number:05d}"


@dataclass(frozen=True)
class ShardFile:
    """A whole shard on disk.

    Attributes:
        file: Path within the store.
        sha256: SHA-256 of the file.
        num_bytes: Size of the file.
    """

    file: str
    sha256: str
    num_bytes: int


class ShardBytes(NamedTuple):
    """A whole shard, to be sent from another machine.

    Attributes:
        file: Path within the store.
        content: Content of the file.
    """

    file: str
    content: bytes


@dataclass(frozen=True)
class Shard:
    """A shard mapped into memory; the arrays are read-only.

    Attributes:
        values: `[rows, D * num_values]` fp16, `[rows, F]` of features, or `[rows, num_words]` int16
            of distributions over positions, as in `Rows`.
        codes: `[rows, ...]` int16 or int32, as in `Rows`, or None.
        pixels: `[rows]` uint32 or uint16, check sum of each sample's pixels in this view.
        error: `[D]`, encoding error at each tap, summed over the rows.
    """

    values: npt.NDArray[np.float16] | npt.NDArray[np.int16]
    codes: npt.NDArray[np.signedinteger[Any]] | None
    pixels: npt.NDArray[np.uint32] | npt.NDArray[np.uint16]
    error: tuple[float, ...]


def write_shard(
    path: Path,
    shard: ShardId,
    layout: AnyLayout,
    rows: Rows,
    pixels: torch.Tensor,
    error: torch.Tensor,
) -> None:
    """Write a shard of the store at `path`, under its own name and checksum.

    Args:
        path: Folder of the store.
        shard: The shard to write.
        layout: Layout of the rows.
        rows: The encoded rows, on the CPU.
        pixels: `[rows]` int64, check sums below 2^32.
        error: `[D]` fp64, encoding error at each tap, summed over the rows.

    Raises:
        DiskFullError: If the disk is full; nothing of the shard is left.
    """
    sums = (pixels.numpy() & (2**layout.pixel_bits - 1)).astype(f"u{layout.pixel_bits // 8}")
    columns = _columns(layout, rows) | {"pixels": pa.array(sums)}
    facts = json.dumps({"view": shard.view, "number": shard.number, "error": error.tolist()})
    table = pa.table(columns).replace_schema_metadata({_FACTS: facts})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=len(pixels))
    content = sink.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    file = path / f"{shard.stem}-{digest[:_NAMED_DIGITS]}.arrow"
    try:
        write_atomic(file, lambda temporary: _write_bytes(temporary, content))
    except DiskFullError as full:
        raise DiskFullError(f"{full} Or {layout.advice}.") from full


def keep_shard(path: Path, made: ShardBytes) -> None:
    """Write a shard from another machine into the store at `path`.

    Raises:
        DiskFullError: If the disk is full; nothing of the shard is left.
    """
    write_atomic(path / made.file, lambda temporary: _write_bytes(temporary, made.content))


def read_shard(file: Path) -> Shard:
    """Map a shard into memory, without comparing its checksum.

    Raises:
        UserError: If the file cannot be read; names it.
    """
    with parsing(f"{file}: not a readable shard of a store"):
        batch = pa.ipc.open_file(pa.memory_map(str(regular(file)))).get_batch(0)
        batch.validate()  # checks that the buffers are large enough for the rows
        facts = json.loads(batch.schema.metadata[_FACTS])
        codes = [_matrix(batch, name) for name in _CODES if name in batch.schema.names]
        [values] = [_matrix(batch, name) for name in _VALUES if name in batch.schema.names]
        return Shard(
            values=values.view("i2") if values.dtype == np.uint16 else values,
            codes=codes[0].view(f"i{codes[0].itemsize}") if codes else None,
            pixels=batch.column("pixels").to_numpy(),
            error=tuple(facts["error"]),
        )


def whole_shards(path: Path, shards: Iterable[ShardId]) -> dict[ShardId, ShardFile]:
    """Return those of `shards` that exist and match the checksum in their name.

    All other files in their folders, which are broken or left by a process that died, are removed.
    Call this only while holding the store's lock.
    """
    wanted = set(shards)
    found: dict[ShardId, ShardFile] = {}
    for view in sorted({shard.view for shard in wanted}):
        folder = (path / ShardId(view, 0).stem).parent
        for file in sorted(folder.iterdir()) if folder.is_dir() else []:
            if not is_file(file):
                _remove(file)
                continue
            shard, digest = _parse(view, file), sha256(file)
            whole = _is_named(file, digest)
            if shard in wanted and shard not in found and whole:
                name = file.relative_to(path).as_posix()
                found[shard] = ShardFile(name, digest, file.stat().st_size)
            else:
                file.unlink()
    return found


def _remove(path: Path) -> None:
    """Remove something in the place of a shard that is not a file."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def is_named_by_checksum(file: Path) -> bool:
    """Whether a shard's content has the checksum that its name ends in."""
    return _is_named(file, sha256(file))


def _is_named(file: Path, digest: str) -> bool:
    return file.stem.endswith(f"-{digest[:_NAMED_DIGITS]}")


def count_shards(path: Path) -> int:
    """Return the number of shards in the folder of a store, whole or not."""
    return sum(1 for _ in path.glob("view-*/shard-*.arrow"))


def _parse(view: int, file: Path) -> ShardId | None:
    parts = file.name.removesuffix(".arrow").split("-")
    if file.suffix != ".arrow" or parts[0] != "shard" or len(parts) != 3:
        return None
    return ShardId(view, int(parts[1])) if parts[1].isdigit() else None


def _columns(layout: AnyLayout, rows: Rows) -> dict[str, Any]:
    """Return the columns with names and shapes that are easy to use for other programs."""
    if isinstance(layout, WhereLayout):
        return {"where": _tensors(rows.values.numpy().view(np.uint16))}
    if isinstance(layout, FeatureLayout):
        return {"features": _tensors(rows.values.numpy())}
    num_rows, taps = len(rows.values), layout.num_taps
    values = rows.values.numpy().reshape(num_rows, taps, -1)
    if rows.codes is None:
        return {"probabilities": _tensors(values)}
    codes = rows.codes.numpy()
    if layout.is_rounded:
        return {"spans": _tensors(values), "levels": _tensors(codes.view(np.uint32))}
    classes = codes.view(np.uint16).reshape(num_rows, taps, -1)
    return {"probabilities": _tensors(values), "classes": _tensors(classes)}


def _tensors(values: npt.NDArray[Any]) -> Any:
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values))


def _matrix(batch: Any, name: str) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = batch.column(name).to_numpy_ndarray()
    return values.reshape(len(values), -1)


def _write_bytes(file: Path, content: Any) -> None:
    with file.open("wb") as stream:
        stream.write(content)
