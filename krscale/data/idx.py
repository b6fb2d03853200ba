"""The source `idx`: the files in which MNIST and its relatives are distributed."""

from __future__ import annotations

import gzip
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from krscale.config import DataConfig
from krscale.data.arrays import Array, Arrays, source_data
from krscale.data.own_files import (
    OTHER_NAMES,
    existing_path,
    files_identity,
    own_splits,
    refuse_two_names,
)
from krscale.data.source import Description, Report, SourceData, SplitName
from krscale.data.unpacking import refuse_bomb
from krscale.errors import UserError
from krscale.foreign import parsing, regular

_SPLITS: Mapping[str, SplitName] = {**OTHER_NAMES, "t10k": "test"}
WANTED = (
    "a folder with train-images-idx3-ubyte and train-labels-idx1-ubyte (t10k-... likewise), with "
    "or without .gz"
)
_RATIO = 1100  # deflate packs no more than 1032 bytes into one
_UINT8 = 8  # the code of the type in the third byte of a file


class Idx:
    """Arrays of bytes with their shape before them, as LeCun, Cortes and Burges published MNIST."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self.path = existing_path(config, WANTED)
        if not self.path.is_dir():
            raise UserError(f"data.path: {self.path}: not a folder; expected {WANTED}.")
        self.files = _find(self.path)

    @property
    def own_splits(self) -> tuple[SplitName, ...]:
        """Return the splits that have files of their own."""
        return own_splits(self.files)

    def identity(self) -> Mapping[str, Any]:
        """Return settings, and name, size and time of every file."""
        files = (str(file) for pair in self.files.values() for file in pair)
        return files_identity(self.config, self.path, files)

    def describe(self) -> Description | None:
        """Return None: reading takes no longer."""
        return None

    def read(self, report: Report) -> SourceData:
        """Return the arrays."""
        found: dict[SplitName, Arrays] = {}
        for number, (split, (images, labels)) in enumerate(self.files.items(), start=1):
            found[split] = Arrays(_read(images, 3), _read(labels, 1), str(images))
            report(number, len(self.files))
        return source_data(found, (), self.config, str(self.path))


def _find(path: Path) -> dict[SplitName, tuple[Path, Path]]:
    found: dict[str, tuple[Path, Path]] = {}
    for prefix in _SPLITS:
        pair = [_one_of(path, prefix, kind) for kind in ("images-idx3", "labels-idx1")]
        if pair[0] and pair[1]:
            found[prefix] = (pair[0], pair[1])
        elif pair[0] or pair[1]:
            raise UserError(
                f"data.path: {pair[0] or pair[1]}: images or labels are missing beside it."
            )
    splits = {prefix: _SPLITS[prefix] for prefix in found}
    refuse_two_names(splits, str(path))
    if "train" not in splits.values():
        raise UserError(f"data.path: {path}: no training images; expected {WANTED}.")
    return {splits[prefix]: pair for prefix, pair in found.items()}


def _one_of(path: Path, prefix: str, kind: str) -> Path | None:
    # Some copies have a dot where the originals have a dash.
    names = (f"{prefix}-{kind}{dash}ubyte{end}" for dash in "-." for end in ("", ".gz"))
    return next((path / name for name in names if (path / name).is_file()), None)


def _read(path: Path, ndim: int) -> Array:
    packed = path.suffix == ".gz"
    with parsing(f"{path}: not a readable file"):
        size = regular(path).stat().st_size
        with (gzip.open if packed else open)(path, "rb") as file:
            shape = _shape(file.read(4 + 4 * ndim), ndim, path)
            num_values = math.prod(shape)
            if packed:
                refuse_bomb(str(path), size, num_values)
            # One byte more than there should be says whether there are more.
            content = file.read(min(num_values, size * (_RATIO if packed else 1)) + 1)
        if len(content) == num_values:
            return np.frombuffer(content, np.uint8).reshape(shape)
    more = " or more" if len(content) > num_values else ""
    raise UserError(f"{path}: {len(content)} values{more}, its head says {shape}.")


def _shape(head: bytes, ndim: int, path: Path) -> list[int]:
    """Return the shape that a file says it has."""
    if len(head) < 4 + 4 * ndim or head[:2] != b"\0\0" or head[2] != _UINT8:
        raise UserError(f"{path}: not an IDX file of bytes.")
    if head[3] != ndim:
        raise UserError(f"{path}: {head[3]} axes, expected {ndim}.")
    return list(struct.unpack_from(f">{ndim}I", head, 4))
