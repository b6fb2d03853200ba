"""What the sources of one's own files share: files by split, and where an image is."""

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
"""Names of folders, or first words of file names, that say which split is in them."""
OTHER_NAMES: dict[str, SplitName] = {**SPLIT_NAMES, "training": "train", "testing": "test"}
"""Read in any case, but only where no name is one of `SPLIT_NAMES` as it is written there."""


def existing_path(config: DataConfig, wanted: str) -> Path:
    """Return `data.path`, or say what it should be.

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

    Content is not read, since that would take as long as preparing the data: a file that changes
    without a new size or time of change is not noticed.
    """
    digest, num_files = hashlib.sha256(), 0
    for file in files:
        try:
            facts = Path(file).stat()
        except OSError as error:
            raise UserError(f"{utf8_text(file)}: cannot be read ({error.strerror}).") from None
        name = file.removeprefix(str(root))
        # A name may hold bytes that are no UTF-8; they come back as they are on the disk.
        digest.update(os.fsencode(f"{name}\0{facts.st_size}\0{facts.st_mtime_ns}\n"))
        num_files += 1
    return {"files": digest.hexdigest(), "num_files": num_files, **_settings(config)}


def _settings(config: DataConfig) -> dict[str, Any]:
    """Return what changes the images that are read from files.

    Fields that came later are left out where they say what krscale did before there were any, so
    that data sets which are older are found.
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
    """Return what tells data whose given classes are compared by name.

    From those prepared before that was so, in which a name might stand for another number.
    """
    return {"labels": "by name"} if config.files.classes else {}


def own_splits(files: Mapping[SplitName, object]) -> tuple[SplitName, ...]:
    """Return the splits that need not be cut from the training images."""
    return tuple(name for name in files if name != "train")


def splits_of_folders(names: Sequence[str], where: str) -> dict[str, SplitName]:
    """Return the split that each folder is named after; nothing unless all of them are.

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
    """Refuse names of which two mean the same split: the images of one would be lost.

    Args:
        splits: Of every name of a folder, a file or an array.
        where: What holds them, in words.

    Raises:
        UserError: Naming these.
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
    """Return which column has a name.

    Raises:
        UserError: If none has it, or several have, of which one would be taken unseen.
    """
    found = [number for number, other in enumerate(names) if other == name]
    if not found:
        raise unknown_name("column", name, names, where)
    if len(found) > 1:
        raise UserError(f"{where}: {len(found)} columns are named {name!r}; rename all but one.")
    return found[0]


@dataclass(frozen=True)
class ImageLocations:
    """Where the values of a column are, split by split.

    Attributes:
        files: In order.
        num_rows: Rows of each.
        column: Its name.
        start: Row at which the first file begins.
    """

    files: Sequence[Path]
    num_rows: Sequence[int]
    column: str
    start: int = 0

    @cached_property
    def _ends(self) -> Labels:
        return np.cumsum(self.num_rows, dtype=np.int64)

    def __call__(self, number: int) -> str:
        """Word where a value is: file, column and row, all as other programs count them."""
        file = int(np.searchsorted(self._ends, number, side="right"))
        row = number - int(self._ends[file] - self.num_rows[file]) + (0 if file else self.start)
        return f"{self.files[file]}: column {self.column!r}: row {row}"
