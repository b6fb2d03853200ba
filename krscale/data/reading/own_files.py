"""Code shared by sources of the user's own files: files by split, and where an image is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from krscale.config import DataConfig, FilesConfig
from krscale.data.arrow import Labels
from krscale.data.source import SplitName
from krscale.errors import UserError, unknown_name, utf8_text
from krscale.foreign import missing

SPLIT_NAMES: dict[str, SplitName] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
"""Names of folders, or first words of file names, that denote a split."""
OTHER_NAMES: dict[str, SplitName] = {**SPLIT_NAMES, "training": "train", "testing": "test"}
"""Matched in any case, but only if no name is in `SPLIT_NAMES` exactly."""


def existing_path(config: DataConfig, wanted: str) -> Path:
    """Return `data.path`, or raise an error that says what is expected.

    Raises:
        UserError: If it is empty or does not exist.
    """
    if not config.path:
        raise UserError(f"data.path: the source {config.source!r} needs a path: {wanted}.")
    path = Path(config.path).expanduser()
    if not path.exists():
        gone = missing(path, "file or folder")
        raise UserError(f"data.path: {path}: {gone}; expected {wanted}.")
    return path


def files_identity(config: DataConfig, root: Path, files: Iterable[str]) -> dict[str, Any]:
    """Return what determines the images: settings, and name, size and time of every file.

    File contents are not read, since that would take as long as preparing the data. A change that
    alters neither size nor modification time of a file is thus not detected.
    """
    digest, num_files = hashlib.sha256(), 0
    for file in files:
        try:
            facts = Path(file).stat()
        except OSError as error:
            raise UserError(f"{utf8_text(file)}: cannot be read ({error.strerror}).") from None
        name = file.removeprefix(str(root))
        # A name may hold bytes that are not UTF-8; fsencode restores the bytes on disk.
        digest.update(os.fsencode(f"{name}\0{facts.st_size}\0{facts.st_mtime_ns}\n"))
        num_files += 1
    return {"files": digest.hexdigest(), "num_files": num_files, **_settings(config)}


def _settings(config: DataConfig) -> dict[str, Any]:
    """Return the settings that affect the images that are read from files.

    Fields that were added later are left out if their value gives the earlier behaviour, so that
    older data sets are still found.
    """
    settings = config.files.model_dump(mode="json")
    for name in ("path_column", "split_column", "channels", "exif_orientation"):
        if settings[name] == FilesConfig.model_fields[name].default:
            del settings[name]
    if config.background != "ignore":
        settings["background"] = config.background
    if config.source != "image_folder":
        settings |= compared_by_name(config)
    later = {"map_labels": config.map_labels, "skip_unreadable": config.skip_unreadable}
    return settings | {name: True for name, is_set in later.items() if is_set}


def compared_by_name(config: DataConfig) -> dict[str, str]:
    """Return an entry that marks data whose given classes are compared by name.

    In data prepared by older versions, a name might stand for another number.
    """
    return {"labels": "by name"} if config.files.classes else {}


def own_splits(files: Mapping[SplitName, object]) -> tuple[SplitName, ...]:
    """Return the splits that are not cut from the training images."""
    return tuple(name for name in files if name != "train")


def splits_of_folders(names: Sequence[str], where: str) -> dict[str, SplitName]:
    """Return the split that each folder is named after; empty unless all folders are.

    Raises:
        UserError: If two are named after the same split.
    """
    table: Mapping[str, SplitName] = SPLIT_NAMES
    found = {name: table[name] for name in names if name in table}
    if not found:
        table = OTHER_NAMES
        found = {name: table[name.lower()] for name in names if name.lower() in table}
    if len(found) < len(names) or "train" not in found.values():
        return {}
    refuse_two_names(found, where)
    return found


def refuse_two_names(splits: Mapping[str, SplitName], where: str) -> None:
    """Refuse two names for the same split: the images of one would be lost.

    Args:
        splits: The split of each name of a folder, a file or an array.
        where: Description of what contains them.

    Raises:
        UserError: If there are such names; the message lists them.
    """
    for split in dict.fromkeys(splits.values()):
        same = [name for name, meant in splits.items() if meant == split]
        if len(same) > 1:
            number = "both" if len(same) == 2 else "all"
            raise UserError(
                f"data.path: {where}: {' and '.join(same)} are {number} named after the split "
                f"{split}; put them together, or rename one."
            )


def column_number(names: Sequence[str], name: str, where: str) -> int:
    """Return the index of the column with a name.

    Raises:
        UserError: If no column has the name, or if several have it, since one would be picked
            silently.
    """
    found = [number for number, other in enumerate(names) if other == name]
    if not found:
        raise unknown_name("column", name, names, where)
    if len(found) > 1:
        raise UserError(f"{where}: {len(found)} columns are named {name!r}; rename all but one.")
    return found[0]


@dataclass(frozen=True)
class ImageLocations:
    """Describes where the values of a column of one split are.

    Attributes:
        files: Files of the split, in order.
        num_rows: Number of rows of each file.
        column: Name of the column.
        start: Number, within the first file, of the first row that is described.
    """

    files: Sequence[Path]
    num_rows: Sequence[int]
    column: str
    start: int = 0

    @cached_property
    def _ends(self) -> Labels:
        return np.cumsum(self.num_rows, dtype=np.int64)

    def __call__(self, number: int) -> str:
        """Describe where a value is by file, column and row, with rows counted from 0 per file."""
        file = int(np.searchsorted(self._ends, number, side="right"))
        row = number - int(self._ends[file] - self.num_rows[file]) + (0 if file else self.start)
        return f"{self.files[file]}: column {self.column!r}: row {row}"
