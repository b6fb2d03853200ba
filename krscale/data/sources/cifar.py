"""The sources `cifar10` and `cifar100`, read from the files that their authors distribute.

Source: Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009. Both versions
are read, "python" (pickles) and "binary", as archives or unpacked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from krscale.config import DataConfig
from krscale.data.arrow import Split
from krscale.data.reading.pickled_arrays import read_numbers
from krscale.data.reading.unpacking import read_members
from krscale.data.source import Description, Report, SourceData, SplitName
from krscale.errors import UserError
from krscale.files import sha256
from krscale.foreign import missing

_SHAPE = (3, 32, 32)
_NUM_VALUES = 3 * 32 * 32  # values of one image, channel by channel, row by row
_MOST_CLASSES = 2**16
_MAX_FILE = 2**28
"""Maximum bytes of one file; the largest distributed one, with 50,000 images, has 155 million."""


@dataclass(frozen=True)
class PythonVersion:
    """Pickles of Python 2: a dictionary in each file.

    Attributes:
        train: Names of the files with training images.
        test: Name of the file with test images.
        classes: Name of the file with the names of the classes.
        label_key: Key of the labels in a batch.
        class_key: Key of the names in `classes`.
    """

    train: tuple[str, ...]
    test: str
    classes: str
    label_key: bytes
    class_key: bytes

    def read_classes(self, content: bytes, where: str) -> tuple[str, ...]:
        """Return the names of the classes."""
        names = _entry(read_numbers(content, where), self.class_key, where)
        if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
            raise UserError(f"{where}: {self.class_key.decode()} is not a list of names.")
        return tuple(name.decode("ascii", errors="replace") for name in names)

    def read_batch(self, content: bytes, where: str) -> Split:
        """Return the images of a batch."""
        batch = read_numbers(content, where)
        images = _entry(batch, b"data", where)
        labels = _entry(batch, self.label_key, where)
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 2:
            raise UserError(f"{where}: data is not a table of uint8.")
        if images.shape[1] != _NUM_VALUES:
            raise UserError(
                f"{where}: an image has {images.shape[1]} values, expected {_NUM_VALUES}."
            )
        if not isinstance(labels, list) or not all(type(label) is int for label in labels):
            raise UserError(f"{where}: {self.label_key.decode()} is not a list of whole numbers.")
        if wrong := [label for label in labels if not 0 <= label < _MOST_CLASSES]:
            raise UserError(f"{where}: the label {wrong[0]} can be no class.")
        # Files are concatenated: labels missing in one would be taken from the next.
        if len(images) != len(labels):
            raise UserError(f"{where}: {len(images)} images, but {len(labels)} labels.")
        return Split(images.reshape(-1, *_SHAPE), np.array(labels, dtype=np.int64))


@dataclass(frozen=True)
class BinaryVersion:
    """Rows of bytes: the labels of an image, the class last, then its values.

    Attributes:
        train: Names of the files with training images.
        test: Name of the file with test images.
        classes: Name of the file with the names of the classes, one a line.
        num_labels: Labels of each image.
    """

    train: tuple[str, ...]
    test: str
    classes: str
    num_labels: int

    def read_classes(self, content: bytes, where: str) -> tuple[str, ...]:
        """Return the names of the classes."""
        lines = content.decode("ascii", errors="replace").splitlines()
        return tuple(line.strip() for line in lines if line.strip())

    def read_batch(self, content: bytes, where: str) -> Split:
        """Return the images of a batch."""
        row = self.num_labels + _NUM_VALUES
        if len(content) % row:
            raise UserError(
                f"{where}: {len(content)} bytes are no whole number of {row}-byte rows."
            )
        rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, row)
        images = rows[:, self.num_labels :].reshape(-1, *_SHAPE)
        return Split(images, rows[:, self.num_labels - 1].astype(np.int64))


Version = PythonVersion | BinaryVersion


class _Cifar:
    """Code shared by the two data sets."""

    own_splits: ClassVar[tuple[SplitName, ...]] = ("test",)
    archives: ClassVar[tuple[str, ...]]
    folders: ClassVar[tuple[str, ...]]
    versions: ClassVar[tuple[Version, ...]]

    def __init__(self, config: DataConfig) -> None:
        self.source = config.source
        self.path = Path(config.path).expanduser()
        if not config.path:
            raise UserError(f"data.path: the source {self.source!r} needs a path. {self._wanted()}")
        if not self.path.exists():
            gone = missing(self.path, "file or folder")
            raise UserError(f"data.path: {self.path}: {gone}. {self._wanted()}")

    def identity(self) -> Mapping[str, Any]:
        """Return the hash of every file that is read."""
        if self.path.is_file():
            return {"archive": sha256(_bounded(self.path, 2 * _MAX_FILE))}
        folder, version = self._find_folder()
        return {name: sha256(_bounded(folder / name, _MAX_FILE)) for name in _names(version)}

    def describe(self) -> Description | None:
        """Return None: the files must be read."""
        return None

    def read(self, report: Report) -> SourceData:
        """Read all images, `[N, 3, 32, 32]`."""
        version, files = self._read_files()
        batches: list[Split] = []
        for name in (*version.train, version.test):
            batches.append(version.read_batch(files[name], f"{self.path}: {name}"))
            if not len(batches[-1].images):
                raise UserError(f"{self.path}: {name}: it holds no image.")
            report(len(batches), len(version.train) + 1)
        train = Split(
            np.concatenate([batch.images for batch in batches[:-1]]),
            np.concatenate([batch.labels for batch in batches[:-1]]),
        )
        classes = version.read_classes(files[version.classes], f"{self.path}: {version.classes}")
        return SourceData(classes, {"train": train, "test": batches[-1]}, published=True)

    def _read_files(self) -> tuple[Version, dict[str, bytes]]:
        if self.path.is_dir():
            folder, version = self._find_folder()
            return version, {name: _read_file(folder / name) for name in _names(version)}
        files = read_members(
            self.path, {name for v in self.versions for name in _names(v)}, _MAX_FILE
        )
        return self._version_of(files), files

    def _find_folder(self) -> tuple[Path, Version]:
        """Return the folder that holds the files, `path` or one in it, and their version."""
        for folder in (self.path, *(self.path / name for name in self.folders)):
            entries = folder.iterdir() if folder.is_dir() else ()
            present = {entry.name for entry in entries if entry.is_file()}
            if any(name in present for version in self.versions for name in _names(version)):
                return folder, self._version_of(present)
        raise UserError(f"data.path: {self.path}: no file of {self.source}. {self._wanted()}")

    def _version_of(self, present: Iterable[str]) -> Version:
        """Return the version whose files are all present."""
        names = set(present)
        missing: list[list[str]] = [
            [name for name in _names(version) if name not in names] for version in self.versions
        ]
        for version, absent in zip(self.versions, missing, strict=True):
            if not absent:
                return version
        fewest = min(missing, key=len)
        raise UserError(f"data.path: {self.path}: missing {', '.join(fewest)}. {self._wanted()}")

    def _wanted(self) -> str:
        versions = " or ".join(", ".join(_names(version)) for version in self.versions)
        return f"Expected {' or '.join(self.archives)}, or a folder with {versions}."


class Cifar10(_Cifar):
    """CIFAR-10: 60,000 colour images of 32x32 pixels in 10 classes."""

    archives = ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz")
    folders = ("cifar-10-batches-py", "cifar-10-batches-bin")
    versions = (
        PythonVersion(
            train=tuple(f"data_batch_{number}" for number in range(1, 6)),
            test="test_batch",
            classes="batches.meta",
            label_key=b"labels",
            class_key=b"label_names",
        ),
        BinaryVersion(
            train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
            test="test_batch.bin",
            classes="batches.meta.txt",
            num_labels=1,
        ),
    )


class Cifar100(_Cifar):
    """CIFAR-100: 60,000 colour images of 32x32 pixels in 100 (fine) classes."""

    archives = ("cifar-100-python.tar.gz", "cifar-100-binary.tar.gz")
    folders = ("cifar-100-python", "cifar-100-binary")
    versions = (
        PythonVersion(
            train=("train",),
            test="test",
            classes="meta",
            label_key=b"fine_labels",
            class_key=b"fine_label_names",
        ),
        BinaryVersion(
            train=("train.bin",),
            test="test.bin",
            classes="fine_label_names.txt",
            num_labels=2,
        ),
    )


def _names(version: Version) -> tuple[str, ...]:
    return (*version.train, version.test, version.classes)


def _entry(batch: Any, key: bytes, where: str) -> Any:
    if not isinstance(batch, dict) or key not in batch:
        raise UserError(f"{where}: holds no {key.decode()!r}.")
    return batch[key]


def _read_file(path: Path) -> bytes:
    return _bounded(path, _MAX_FILE).read_bytes()


def _bounded(path: Path, most: int) -> Path:
    """Return a file that will be read whole; refuse one larger than any file of the source."""
    size = path.stat().st_size
    if size > most:
        raise UserError(
            f"data.path: {path}: {size:,} bytes; files of this source have at most {most:,}."
        )
    return path
