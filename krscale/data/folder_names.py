"""Folders and files whose names say that they are laid out otherwise than they would be read.

Each would be read without an error, with splits for classes, or with the images
of one's own test split among those that are trained on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from krscale.data.own_files import OTHER_NAMES, SPLIT_NAMES
from krscale.data.source import SplitName
from krscale.data.walking import printable
from krscale.errors import UserError

_WORDS = re.compile(r"[\W_]+|(?<=[a-z])(?=[A-Z])")
_SPLIT = re.compile(rf"({'|'.join(OTHER_NAMES)})(set|data|images|imgs)?")


def refuse_half(
    path: Path, folders: Sequence[Path], holds_folders_only: Callable[[Path], bool]
) -> None:
    """Refuse folders of which some are splits: all would be taken for classes.

    A class may be called train, and another test: they hold images, where splits hold folders.

    Args:
        path: What holds the folders.
        folders: Of which not all are named `train`, `val` or `test`.
        holds_folders_only: Says of a folder whether it holds folders and no image.

    Raises:
        UserError: Naming those that are not, unless what is missing is train. Or naming those that
            are named alike but for a split, as `seg_train` and `seg_test`.
    """
    for names in named_alike([folder.name for folder in folders]):
        if all(holds_folders_only(path / name) for name in names):
            raise UserError(f"data.path: {path}: {_why(names, folders)}")


def _why(names: Mapping[str, SplitName], folders: Sequence[Path]) -> str:
    exact = {name: split for name, split in names.items() if name in SPLIT_NAMES} or names
    if any(name.lower() not in OTHER_NAMES for name in exact):
        return (
            f"{_and(list(exact))} are named after splits and hold folders: as they stand, they "
            "would be classes. Name them train, val and test, with a folder for each class in "
            "them."
        )
    other = [printable(folder.name) for folder in folders if folder.name not in exact]
    listed = ", ".join(other[:5]) + (", ..." if len(other) > 5 else "")
    verb, what = ("is", "it") if len(other) == 1 else ("are", "them")
    reason = f"{listed} {verb} not: move {what} out" if other else "none is named train"
    return (
        f"folders are named after splits ({', '.join(exact)}), but {reason}; name all of them "
        f"({', '.join(SPLIT_NAMES)}), or none."
    )


def refuse_splits_within(folder: Path, inside: Sequence[str]) -> None:
    """Refuse a class whose images are in folders of splits: they would be cut anew.

    Args:
        folder: Of the class.
        inside: Names of the folders in it that hold images.

    Raises:
        UserError: Naming them.
    """
    for names in named_alike(inside):
        raise UserError(
            f"data.path: {folder}: its images are in folders named after splits "
            f"({', '.join(names)}), which would be put together and cut anew. krscale reads splits "
            f"above classes: train/{printable(folder.name)}, and so on."
        )


def refuse_one(root: Path, files: Sequence[str], whole: bool) -> None:
    """Refuse a folder that is the only class, and holds the folders that are meant.

    Args:
        root: What holds the folder.
        files: Paths of all images.
        whole: Whether `root` is `data.path`, and not one of its splits.

    Raises:
        UserError: Saying where the folders are, if there are any.
    """
    holding = {file.rpartition(os.sep)[0] for file in files}
    top = os.path.commonpath(holding)
    if top in holding:
        return
    inside = sorted({Path(folder).relative_to(top).parts[0] for folder in holding})
    listed = ", ".join(map(printable, inside[:5])) + (", ..." if len(inside) > 5 else "")
    what = f"give {top} as data.path" if whole else f"move them into {root}"
    raise UserError(
        f"data.path: {root}: all images are in one folder, which is one class; {printable(top)} "
        f"holds {len(inside)} ({listed}). If these are the classes, {what}."
    )


def named_alike(names: Sequence[str]) -> list[dict[str, SplitName]]:
    """Return the names that differ in a word for a split alone, and which split it is.

    Args:
        names: Of files or folders, or paths.

    Example:
        >>> named_alike(["seg_train", "seg_test", "drug_test", "cats"])
        [{'seg_train': 'train', 'seg_test': 'test'}]
    """
    found: dict[tuple[str, ...], dict[str, SplitName]] = {}
    for name in names:
        words = [word.lower() for word in _WORDS.split(name) if word]
        for place, word in enumerate(words):
            if named := _SPLIT.fullmatch(word):
                rest = (*words[:place], named[2] or "", *words[place + 1 :])
                found.setdefault(rest, {})[name] = OTHER_NAMES[named[1]]
                break
    return [alike for alike in found.values() if len(set(alike.values())) > 1]


def _and(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names[:-1])) + f" and {printable(names[-1])}"
