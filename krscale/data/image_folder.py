"""The source `image_folder`: one folder per class, alone or within a folder per split."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from krscale.config import DataConfig
from krscale.data.arrow import Images
from krscale.data.decoding import Decoder, piece_size
from krscale.data.own_files import (
    SPLIT_NAMES,
    class_names,
    existing_path,
    files_identity,
    own_splits,
    to_labels,
)
from krscale.data.source import Description, Report, SourceData, SplitName
from krscale.data.stream import Stream
from krscale.errors import UserError

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
WANTED = "CLASS/IMAGE.png in it, or train/CLASS/IMAGE.png (and val/..., test/...)"


class ImageFolder:
    """Image files, whose folder is their class.

    Files of other types and hidden ones are passed over. Where every folder is named after a split,
    classes are the folders in these, and no image crosses from one split to another.
    """

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self.path = existing_path(config, f"a folder with {WANTED}")
        if not self.path.is_dir():
            raise UserError(f"data.path: {self.path}: not a folder; expected {WANTED}.")
        names = [folder.name for folder in _folders(self.path)]
        self.is_split = "train" in names and all(name in SPLIT_NAMES for name in names)

    @property
    def own_splits(self) -> tuple[SplitName, ...]:
        """Return the splits that have a folder of their own."""
        return own_splits(self.roots)

    @property
    def roots(self) -> dict[SplitName, Path]:
        """Return the folder of classes of each split."""
        if not self.is_split:
            return {"train": self.path}
        return {SPLIT_NAMES[folder.name]: folder for folder in _folders(self.path)}

    @cached_property
    def files(self) -> Mapping[SplitName, Sequence[tuple[str, str]]]:
        """Return class and path of every image."""
        return {name: _images(root) for name, root in self.roots.items()}

    def identity(self) -> Mapping[str, Any]:
        """Return settings, and name, size and time of every file."""
        files = (file for found in self.files.values() for _, file in found)
        return files_identity(self.config, self.path, files)

    def describe(self) -> Description | None:
        """Return None: `read` decodes one image only."""
        return None

    def read(self, report: Report) -> SourceData:
        """Return the labels, and streams that decode the images."""
        names = {s: np.array([name for name, _ in f], object) for s, f in self.files.items()}
        classes = class_names(self.config.files.classes, names["train"], str(self.path))
        first = self.files["train"][0][1]
        decoder = Decoder(self.config.files)
        shape = decoder.decode(first, lambda: first).shape
        total, done = sum(len(found) for found in self.files.values()), 0

        def count(number: int) -> None:
            nonlocal done
            done += number
            report(done, total)

        streams: dict[SplitName, Stream] = {}
        for split, found in self.files.items():
            files = [file for _, file in found]
            labels = to_labels(names[split], classes, files.__getitem__)

            def pieces(files: Sequence[str] = files) -> Iterator[Images]:
                size = piece_size(shape)
                batches = (files[start : start + size] for start in range(0, len(files), size))
                for piece in decoder.pieces(batches, shape, files.__getitem__):
                    yield piece
                    count(len(piece))

            streams[split] = Stream(labels, shape, pieces)
        return SourceData(classes, streams)


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(root: Path) -> list[tuple[str, str]]:
    """Return class and path of every image below `root`, sorted.

    Raises:
        UserError: If there is no class, or one without an image.
    """
    folders = _folders(root)
    if not folders:
        raise UserError(f"data.path: {root}: no folder of a class in it; expected {WANTED}.")
    found: list[tuple[str, str]] = []
    for folder in folders:
        files = sorted(_files(folder))
        if not files:
            kinds = ", ".join(sorted(SUFFIXES))
            raise UserError(f"data.path: {folder}: no image in this class ({kinds}).")
        found += [(folder.name, file) for file in files]
    return found


def _files(folder: Path) -> Iterator[str]:
    """Yield the images below a folder as text: a Path each would be the larger part of a scan."""
    for place, _, names in os.walk(folder):
        for name in names:
            suffix = name[name.rfind(".") :].lower()
            if suffix in SUFFIXES and not name.startswith("."):
                yield f"{place}{os.sep}{name}"
