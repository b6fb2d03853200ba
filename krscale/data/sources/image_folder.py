"""The source `image_folder`: one folder per class, alone or within a folder per split."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from krscale.config import DataConfig
from krscale.data.reading.classes import check_text
from krscale.data.reading.encoded import Part, encoded_data, of_files
from krscale.data.reading.hidden_splits import refuse_half, refuse_one, refuse_splits_within
from krscale.data.reading.own_files import (
    existing_path,
    files_identity,
    own_splits,
    splits_of_folders,
)
from krscale.data.reading.walking import SYSTEM_FOLDERS, Found, is_hidden_folder, walk
from krscale.data.source import Description, Report, SourceData, SplitName
from krscale.errors import UserError, utf8_text
from krscale.foreign import real

SUFFIXES = frozenset(
    (
        ".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff",
        ".ppm", ".pgm", ".pbm", ".pnm",
    )
)  # fmt: skip
WANTED = "CLASS/IMAGE.png in it, or train/CLASS/IMAGE.png (and val/..., test/...)"
_OTHER_FILE = re.compile(
    rf"\.(?!(?:{'|'.join(sorted(suffix[1:] for suffix in SUFFIXES))})$)[a-z]{{2,4}}", re.IGNORECASE
)
"""Suffix of a file of another type; the name of a class hardly ends in one."""
_SHARED = 2  # minimum number of shared names; a single one (`images`) means nothing


class ImageFolder:
    """Image files whose folder is their class.

    Files of other types, hidden files and system files are skipped and counted. If every folder is
    named after a split, the classes are the folders inside these, and images stay in their split.
    """

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self.path = existing_path(config, f"a folder with {WANTED}")
        if not self.path.is_dir():
            raise UserError(f"data.path: {self.path}: not a folder; expected {WANTED}.")
        self.top, folders = _folders(self.path)
        self.roots: dict[SplitName, Path] = {"train": self.path}
        splits = splits_of_folders([folder.name for folder in folders], str(self.path))
        if splits:
            self.roots = {splits[folder.name]: folder for folder in folders}
        else:
            refuse_half(self.path, folders, _holds_classes)

    @property
    def own_splits(self) -> tuple[SplitName, ...]:
        """Return the splits that have a folder of their own."""
        return own_splits(self.roots)

    @cached_property
    def files(self) -> Mapping[SplitName, Sequence[tuple[str, str]]]:
        """Return class and path of every image."""
        found: dict[SplitName, list[tuple[str, str]]] = {}
        self.seen = Found()
        if self.path not in self.roots.values():
            self.seen.add(self.top)
        for name, root in self.roots.items():
            found[name] = _images(root, self.seen, skip=self.config.skip_unreadable)
            if name == "train" and len({label for label, _ in found[name]}) == 1:
                refuse_one(root, [file for _, file in found[name]], whole=root == self.path)
        self.seen.check(self.path, skip=self.config.skip_unreadable)
        return found

    def identity(self) -> Mapping[str, Any]:
        """Return settings, and name, size and time of every file."""
        files = (file for found in self.files.values() for _, file in found)
        return files_identity(self.config, self.path, files)

    def describe(self) -> Description | None:
        """Return None: `read` decodes one image only."""
        return None

    def read(self, report: Report) -> SourceData:
        """Return the labels, and streams that decode the images."""
        parts: dict[SplitName, Part] = {}
        for split, found in self.files.items():
            files = [file for _, file in found]
            names = np.array([name for name, _ in found], object)
            parts[split] = Part(names, of_files(files), Names(files))
        notes = (*_same_inside(self.path, self.files["train"]), *self.seen.notes(self.path))
        return encoded_data(parts, self.config, report, notes)


@dataclass(frozen=True)
class Names:
    """Describes where an image is: its path, in characters that can be encoded."""

    files: Sequence[str]

    def __call__(self, number: int) -> str:
        """Return the path of an image."""
        return utf8_text(self.files[number])


def _folders(path: Path) -> tuple[Found, list[Path]]:
    """Return the folders in a folder, sorted, and what else is in it.

    Raises:
        UserError: If a name is not text.
    """
    found, folders = Found(), []
    for entry in sorted(path.iterdir()):
        if entry.name.startswith(".") or (entry.is_dir() and is_hidden_folder(entry.name)):
            found.hidden[entry.name] += 1
            if num_images := _num_images(entry):
                found.classes[entry.name] = num_images
        elif entry.is_symlink() and real(path).is_relative_to(real(entry)):
            found.links.append(str(entry))  # it contains this folder
        elif entry.is_symlink() and not entry.exists() and not _OTHER_FILE.fullmatch(entry.suffix):
            found.broken.append((str(entry), "a link to nothing"))  # a class or split may be lost
        elif entry.is_dir():
            check_text(entry.name, str(entry))
            folders.append(entry)
        elif entry.suffix.lower() in SUFFIXES:
            found.outside.append(str(entry))
        else:
            found.others[entry.suffix.lower() or "no suffix"] += 1
    return found, folders


def _holds_classes(folder: Path) -> bool:
    """Whether a folder holds folders, and more images in them than beside them."""
    found, folders = _folders(folder)
    if not found.outside:
        return bool(folders)
    return sum(_num_images(inside) for inside in folders) > len(found.outside)


def _num_images(entry: Path) -> int:
    """Return the number of images in a folder, at every depth; 0 if it cannot be listed."""
    if not entry.is_dir() or entry.name.lower() in SYSTEM_FOLDERS:
        return 0
    try:
        return len(walk(entry, SUFFIXES).files)
    except UserError:  # it cannot be listed
        return 0


def _images(root: Path, seen: Found, *, skip: bool) -> list[tuple[str, str]]:
    """Return class and path of every image below `root`, sorted; the rest is added to `seen`.

    Args:
        root: Folder of the classes.
        seen: Record of what is skipped.
        skip: Whether data files that cannot be opened are left out. If not, `Found.check` reports
            them, also those of a class that has no others.

    Raises:
        UserError: If there is no class, or a class without images.
    """
    beside, folders = _folders(root)
    seen.add(beside)
    if not folders:
        listed = next((kind for kind in (".csv", ".tsv") if seen.others[kind]), "")
        hint = f" The source 'image_list' reads lists, as that {listed} may be." if listed else ""
        raise UserError(f"data.path: {root}: no folder of a class in it; expected {WANTED}.{hint}")
    images: list[tuple[str, str]] = []
    for folder in folders:
        found = walk(folder, SUFFIXES)
        if not found.files and (skip or not found.broken):
            kinds = ", ".join(sorted(SUFFIXES))
            gone = f"; none of its {len(found.broken)} can be opened" if found.broken else ""
            raise UserError(f"data.path: {folder}: no image in this class ({kinds}){gone}.")
        refuse_splits_within(folder, _inside(folder, found.files))
        images += [(folder.name, file) for file in sorted(found.files)]
        seen.add(found)
    return images


def _same_inside(where: Path, images: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Return a note if all classes hold folders of the same names: these may be the real classes.

    This occurs in data of several domains (`photo/dog`, `sketch/dog`). It is not an error: in
    `dog/left` and `cat/left`, the class is above the side that was photographed.
    """
    holding: dict[str, set[str]] = {}
    for label, file in images:
        holding.setdefault(label, set()).add(file.rpartition(os.sep)[0])
    names = [{folder.rpartition(os.sep)[2] for folder in found} for found in holding.values()]
    shared = sorted(set.intersection(*names)) if len(names) > 1 else []
    if len(shared) < _SHARED:
        return ()
    inside, above = (
        ", ".join(map(utf8_text, found[:5])) + (", ..." if len(found) > 5 else "")
        for found in (shared, list(holding))
    )
    return (
        f"{where}: all classes ({above}) hold folders of the same names ({inside}). If these are "
        "the classes, give one of the folders above them as data.path.",
    )


def _inside(folder: Path, files: Sequence[str]) -> list[str]:
    """Return the names of the folders in a folder that hold files, at every depth."""
    start = len(str(folder)) + 1
    parts = (file[start:].split(os.sep, 1) for file in files)
    return sorted({names[0] for names in parts if len(names) > 1})
