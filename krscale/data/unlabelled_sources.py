"""Read images without labels, with the readers of labelled data, which then read only images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq

from krscale.config import DataConfig
from krscale.data.arrow import Labels, Split
from krscale.data.reading.arrays import Arrays, to_images
from krscale.data.reading.encoded import Batches, Part, encoded_streams, of_files
from krscale.data.reading.own_files import ImageLocations, existing_path, files_identity
from krscale.data.reading.saved_sets import SETS_FILE, STATE_FILE, Saved, split_names
from krscale.data.reading.walking import Found, walk
from krscale.data.source import Place, Report, SourceData, SplitName
from krscale.data.sources.guessing import kind_of
from krscale.data.sources.hf_disk import HfDisk, encoded_rows
from krscale.data.sources.image_folder import SUFFIXES, Names
from krscale.data.sources.image_list import ImageList
from krscale.data.sources.numpy_files import NumpyFiles, holds_images
from krscale.data.sources.parquet import Parquet, refuse_large_table
from krscale.errors import UserError
from krscale.foreign import missing, parsing, regular
from krscale.methods.batch import UNLABELLED

WANTED = (
    "a folder of images at any depth, a .csv, .tsv or .parquet list of paths, Parquet files with a "
    "column of images, an .npz or .npy file of images, or a folder that save_to_disk has written"
)

_WHITE = 255
"""The largest value of 8-bit pixels."""


class UnlabelledSource(Protocol):
    """Reads images that have no labels."""

    def identity(self) -> Mapping[str, Any]:
        """Return what determines the images, JSON-serialisable; see `Source.identity`."""
        ...

    def read(self, report: Report) -> SourceData:
        """Return all images as the split `train`, without classes, each labelled `UNLABELLED`."""
        ...


def open_unlabelled(config: DataConfig, num_channels: int) -> UnlabelledSource:
    """Return the source for the path in `data.unlabelled`.

    Args:
        config: The data section; `unlabelled` is not empty.
        num_channels: Channels of the labelled images, 1 or 3; files are read with as many.

    Raises:
        UserError: If the path does not exist, or no source can read it.
    """
    path = Path(config.unlabelled).expanduser()
    if not path.exists():
        gone = missing(path, "file or folder")
        raise UserError(f"data.unlabelled: {path}: {gone}; expected {WANTED}.")
    kind = _kind(path, config)
    files = config.files.model_copy(update={"num_channels": num_channels})
    own = config.model_copy(update={"path": config.unlabelled, "source": kind, "files": files})
    with _names_the_setting():
        return _KINDS[kind](own)


class _Folder:
    """Image files of a folder, at any depth; the names of folders are ignored."""

    def __init__(self, config: DataConfig) -> None:
        self.config, self.path = config, existing_path(config, WANTED)

    @cached_property
    def found(self) -> Found:
        with _names_the_setting():
            found = walk(self.path, SUFFIXES)
            found.check(self.path, skip=self.config.skip_unreadable)
        if not found.files:
            kinds = ", ".join(sorted(SUFFIXES))
            raise UserError(
                f"data.unlabelled: {self.path}: no image in it ({kinds}); expected {WANTED}."
            )
        found.files.sort()
        return found

    def identity(self) -> Mapping[str, Any]:
        return files_identity(self.config, self.path, self.found.files)

    def read(self, report: Report) -> SourceData:
        files = self.found.files
        notes = self.found.notes(self.path)
        return _encoded(of_files(files), Names(files), len(files), self.config, report, notes)


class _List(ImageList):
    """All rows of a list of paths, whatever its other columns hold."""

    def read(self, report: Report) -> SourceData:
        files = self.files
        places = Names([self.place(row) for row in range(len(files))])
        return _encoded(of_files(files), places, len(files), self.config, report)


class _Parquet(Parquet):
    """The column of images of Parquet files, whatever the names of the files."""

    def find_splits(self, files: Sequence[Path]) -> dict[SplitName, list[Path]]:
        if self.path.is_file():
            return {"train": [self.path]}
        if not files:
            raise UserError(f"data.unlabelled: {self.path}: no .parquet file in it.")
        return {"train": list(files)}

    def read(self, report: Report) -> SourceData:
        files = self.files["train"]
        rows = [_num_rows(file) for file in files]
        where = ImageLocations(files, rows, self.settings.image_column)
        labels = _no_labels(sum(rows), self.config)
        streams, seen = self.streams({"train": labels}, {"train": where}, report)
        return SourceData((), streams, {"train": where}, self.seen.notes(self.path), seen=seen)


class _SavedSet(HfDisk):
    """The column of images of one saved dataset."""

    def find_splits(self) -> dict[SplitName, Saved]:
        if (self.path / STATE_FILE).is_file():
            return {"train": Saved.open(self.path)}
        names = split_names(self.path / SETS_FILE)
        raise UserError(
            f"data.unlabelled: {self.path}: holds several splits; name the folder of one of them: "
            f"{', '.join(str(self.path / name) for name in names) or 'there are none'}."
        )

    def read(self, report: Report) -> SourceData:
        saved = self.splits["train"]
        column = self.image_column()
        place = ImageLocations(saved.files, saved.num_rows(), column)
        images = encoded_rows(saved, column, place)
        return _encoded(images, place, sum(place.num_rows), self.config, report)


class _Arrays(NumpyFiles):
    """One array of images."""

    def find_arrays(self) -> dict[str, Path]:
        if self.path.suffix == ".npy" and self.path.is_file():
            return {self.path.stem: self.path}
        return super().find_arrays()

    def find_splits(self) -> dict[SplitName, tuple[str, str]]:
        named = [name for name in self.names if holds_images(name)]
        chosen = list(self.names) if len(self.names) == 1 else named
        if len(chosen) != 1:
            raise UserError(
                f"data.unlabelled: {self.path}: one array of images is needed (there are: "
                f"{', '.join(self.names) or 'none'})."
            )
        return {"train": (chosen[0], "")}

    def read(self, report: Report) -> SourceData:
        name, _ = self.splits["train"]
        where = f"{self.path}: {name}" if self.path.is_file() else str(self.names[name])
        array = self.read_array(name)
        if array.dtype.newbyteorder("=") == np.uint16 and array.size and array.max() <= _WHITE:
            raise UserError(
                f"data.unlabelled: {where}: images of type uint16 from {array.min()} to "
                f"{array.max()}: nothing tells here whether white is 255 or 65535; give them as "
                "uint8."
            )
        found = Arrays(array, np.empty(0, np.int64), where)
        converted, notes = to_images({"train": found}, self.config.files.channels, str(self.path))
        images = converted["train"]
        report(len(images), len(images))
        split = Split(images, _no_labels(len(images), self.config))
        return SourceData((), {"train": split}, notes=notes)


_KINDS: dict[str, Callable[[DataConfig], UnlabelledSource]] = {
    "hf_disk": _SavedSet,
    "image_folder": _Folder,
    "image_list": _List,
    "numpy": _Arrays,
    "parquet": _Parquet,
}


def _kind(path: Path, config: DataConfig) -> str:
    """Return the source that reads a path; for a Parquet file, its columns decide."""
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        raise UserError(f"data.unlabelled: {path}: one image; expected {WANTED}.")
    kind = kind_of(path)
    if kind not in _KINDS:
        raise UserError(f"data.unlabelled: {path}: is of the kind {kind}; expected {WANTED}.")
    if kind == "parquet" and path.is_file():
        with parsing(
            f"data.unlabelled: {path}: not a readable Parquet file", f"Expected {WANTED}."
        ):
            names = pq.read_schema(regular(path)).names
        if config.files.image_column not in names and config.files.path_column in names:
            return "image_list"
    return kind


def _encoded(
    batches: Batches,
    place: Place,
    num_images: int,
    config: DataConfig,
    report: Report,
    notes: Sequence[str] = (),
) -> SourceData:
    labels = _no_labels(num_images, config)
    part = Part(labels, batches, place)
    streams, seen = encoded_streams({"train": labels}, {"train": part}, config, report)
    return SourceData((), streams, {"train": place}, tuple(notes), seen=seen)


def _no_labels(number: int, config: DataConfig) -> Labels:
    if not number:
        raise UserError(f"data.unlabelled: {config.path}: there are no images.")
    return np.full(number, UNLABELLED, np.int64)


def _num_rows(file: Path) -> int:
    with parsing(f"{file}: not a readable Parquet file"):
        found = pq.read_metadata(regular(file))
        refuse_large_table(file, found)
        return int(found.num_rows)


@contextmanager
def _names_the_setting() -> Iterator[None]:
    """Replace `data.path` by `data.unlabelled` in the error messages of readers."""
    try:
        yield
    except UserError as error:
        text = str(error)
        if type(error) is not UserError or not text.startswith("data.path:"):
            raise
        raise UserError(f"data.unlabelled:{text.removeprefix('data.path:')}") from None
