"""The source `numpy`: an `.npz` file, or `.npy` files of images and of labels."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from krscale.config import DataConfig
from krscale.data.reading.arrays import Array, Arrays, as_text, source_data
from krscale.data.reading.hidden_splits import refuse_unread
from krscale.data.reading.own_files import OTHER_NAMES, existing_path, files_identity, own_splits
from krscale.data.reading.unpacking import refuse_bomb
from krscale.data.source import Description, Report, SourceData, SplitName
from krscale.digests import check_file
from krscale.errors import UserError
from krscale.foreign import parsing, regular

_IMAGES, _LABELS = ("images", "image", "x", "data"), ("labels", "label", "y", "targets", "target")
_CLASSES = ("classes", "class_names")
WANTED = (
    "an .npz file with arrays images and labels (or train_images, train_labels, test_images, ..., "
    "or x_train, y_train, ...), or a folder with images.npy and labels.npy (or train_images.npy, "
    "...)"
)


class NumpyFiles:
    """Arrays of images and labels, identified by their names.

    If a single file is named, the matching file of labels or images is read, too; other arrays
    beside it are skipped and listed in a note.
    """

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self.path = existing_path(config, WANTED)
        self.beside: tuple[str, ...] = ()
        self.names = self.find_arrays()
        self.splits = self.find_splits()

    @property
    def own_splits(self) -> tuple[SplitName, ...]:
        """Return the splits that have arrays of their own."""
        return own_splits(self.splits)

    def find_splits(self) -> dict[SplitName, tuple[str, str]]:
        """Return the names of images and labels of every split."""
        return _by_split(self.names, str(self.path))

    def identity(self) -> Mapping[str, Any]:
        """Return settings, and name, size and time of every file."""
        return files_identity(self.config, self.path, sorted(set(map(str, self.names.values()))))

    def describe(self) -> Description | None:
        """Return None: the arrays must be read."""
        return None

    def read(self, report: Report) -> SourceData:
        """Return the arrays."""
        classes = [name for name in self.names if name in _CLASSES]
        used = {*classes[:1], *(name for pair in self.splits.values() for name in pair)}
        passed = [name for name in self.names if name not in used]
        words = {name: _rest(name) for name in passed}
        refuse_unread(words, self.splits, str(self.path))
        found: dict[SplitName, Arrays] = {}
        names = self._class_names(classes[0]) if classes else ()
        for number, (split, (images, labels)) in enumerate(self.splits.items(), start=1):
            where = f"{self.path}: {images}" if self.path.is_file() else str(self.names[images])
            found[split] = Arrays(self.read_array(images), self.read_array(labels), where, names)
            report(number, len(self.splits))
        data = source_data(found, self.config, str(self.path))
        passed += self.beside
        listed = ", ".join(passed[:10]) + (", ..." if len(passed) > 10 else "")
        notes = (f"{self.path}: arrays that were passed over: {listed}.",) if passed else ()
        return replace(data, notes=(*notes, *data.notes))

    def _class_names(self, name: str) -> tuple[str, ...]:
        array = self.read_array(name)
        with parsing(f"{self.names[name]}: {name}: not a list of names"):
            if array.dtype.kind not in "USui":
                raise ValueError(f"it is of type {array.dtype}; expected text")
            return tuple(as_text(found) for found in array.ravel().tolist())

    def find_arrays(self) -> dict[str, Path]:
        """Return the file of every array by name."""
        if self.path.is_dir():
            return {file.stem: file for file in sorted(self.path.glob("*.npy"))}
        if self.path.suffix == ".npy":
            # `images.npy` belongs to `labels.npy`, `x_train.npy` to `y_train.npy`.
            split, kind = _key(self.path.stem)
            beside = {file.stem: file for file in sorted(self.path.parent.glob("*.npy"))}
            other = "images" if kind == "labels" else "labels"
            wanted = {name: file for name, file in beside.items() if _key(name) == (split, other)}
            classes = {name: file for name, file in beside.items() if name in _CLASSES}
            found = {self.path.stem: self.path, **wanted, **classes}
            self.beside = tuple(name for name in beside if _key(name)[1] and name not in found)
            return found
        with (
            parsing(f"{self.path}: not a readable .npz file"),
            zipfile.ZipFile(regular(self.path)) as archive,
        ):
            return {name.removesuffix(".npy"): self.path for name in archive.namelist()}

    def read_array(self, name: str) -> Array:
        """Return an array, memory-mapped if it has its own file; nothing is unpickled."""
        file = self.names[name]
        with parsing(f"{file}: {name}: not a readable array"):
            if file.suffix == ".npy":
                check_file(regular(file))  # applies to files of krscale: images given as objects
                with file.open("rb") as opened:
                    _head(opened)
                array: Array = np.load(file, mmap_mode="r", allow_pickle=False)
                return _with_bytes(array)
            return _read_packed(file, name)


def _read_packed(path: Path, name: str) -> Array:
    """Return an array of an `.npz` file, after comparing its unpacked size with its header."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        info = archive.getinfo(name if name in names else f"{name}.npy")
        refuse_bomb(f"{path}: {name}", info.compress_size, info.file_size)
        with archive.open(info) as member:
            shape, kind = _head(member)
            if math.prod(shape) * kind.itemsize != info.file_size - member.tell():
                raise ValueError(f"{info.file_size} bytes, its head says {list(shape)} of {kind}")
        with archive.open(info) as member:
            array: Array = np.lib.format.read_array(member, allow_pickle=False)
            return _with_bytes(array)


def _with_bytes(array: Array) -> Array:
    """Refuse items of zero bytes, of which an empty file could have any number."""
    if not array.dtype.itemsize and array.size:
        raise ValueError(f"{array.size} items of type {array.dtype}, which have no bytes")
    return array


def _head(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read the shape and type of an array from the beginning of its file."""
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        shape, _, kind = np.lib.format.read_array_header_1_0(member)
    elif version == (2, 0):
        shape, _, kind = np.lib.format.read_array_header_2_0(member)
    else:
        raise ValueError(f"version {version} of the format; 1.0 and 2.0 are read")
    if kind.hasobject:
        raise ValueError(
            "its items are objects of Python, which are pickled and not read; save names as text, "
            "array.astype(str), and numbers as numbers"
        )
    return shape, kind


def _by_split(names: Mapping[str, Path], where: str) -> dict[SplitName, tuple[str, str]]:
    """Return the names of images and labels of every split.

    Raises:
        UserError: If there are none, or if images or labels are missing for a split.
    """
    known = {name: _key(name) for name in names if _key(name)[1]}
    if any(split for split, _ in known.values()):  # then `images` is not a split
        known = {name: key for name, key in known.items() if key[0]}
    found: dict[tuple[SplitName | None, str], str] = {}
    for name, (split, kind) in known.items():
        if (split, kind) in found:
            raise UserError(
                f"data.path: {where}: {found[split, kind]} and {name} are both {kind} of the split "
                f"{split or 'train'}; put them together, or rename one."
            )
        found[split, kind] = name
    splits: dict[SplitName, tuple[str, str]] = {}
    for split in dict.fromkeys(split for split, _ in found):
        pair = found.get((split, "images")), found.get((split, "labels"))
        if pair[0] is None or pair[1] is None:
            missing = "images" if pair[0] is None else "labels"
            raise UserError(
                f"data.path: {where}: {pair[0] or pair[1]} has no {missing} beside it (there are: "
                f"{', '.join(names)}); expected {WANTED}."
            )
        splits[split or "train"] = (pair[0], pair[1])
    if "train" not in splits:
        there = f"there are: {', '.join(names)}" if names else "there are none"
        raise UserError(
            f"data.path: {where}: no arrays of training images ({there}); expected {WANTED}."
        )
    return splits


def holds_images(name: str) -> bool:
    """Whether an array with this name holds images."""
    return _key(name)[1] == "images"


def _key(name: str) -> tuple[SplitName | None, str]:
    """Return the split that an array's name contains, and whether it holds images or labels."""
    words = _words(name)
    word = next((word for word in words if word in OTHER_NAMES), "")
    rest = [other for other in words if other != word]
    for kind, allowed in (("images", _IMAGES), ("labels", _LABELS)):
        if len(rest) == 1 and rest[0] in allowed:
            return OTHER_NAMES.get(word), kind
    return OTHER_NAMES.get(word), ""


def _rest(name: str) -> str:
    """Return an array's name without its word for images or labels; empty if it has none."""
    words = _words(name)
    rest = [word for word in words if word not in (*_IMAGES, *_LABELS)]
    return "_".join(rest) if len(rest) < len(words) else ""


def _words(name: str) -> list[str]:
    return name.lower().replace("-", "_").split("_")
