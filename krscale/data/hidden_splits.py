"""Splits that images have under names which their source does not read.

Each would be read without an error, with splits for classes, or with the images
of one's own test split among those that are trained on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from krscale.data.own_files import OTHER_NAMES, SPLIT_NAMES
from krscale.data.source import SplitName
from krscale.errors import UserError, utf8_text
from krscale.foreign import parsing

_WORDS = re.compile(r"[\W_]+|(?<=[a-z])(?=[A-Z])")
_HIDDEN: dict[str, SplitName] = {
    **OTHER_NAMES,
    "trn": "train",
    "dev": "val",
    "devel": "val",
    "development": "val",
    "eval": "val",
    "evaluation": "val",
    "publictest": "val",
    "tst": "test",
    "privatetest": "test",
    "holdout": "test",
    "heldout": "test",
}
"""Names of splits that krscale knows for what they are; it reads only those of `OTHER_NAMES`."""
_SPLIT = re.compile(rf"({'|'.join(_HIDDEN)})(set|data|images|imgs)?[0-9]*")
_COUNTING = re.compile("[0-9]+|of")
"""Words that number the parts of a split: `train-00000-of-00002`."""

SUSPECTED = frozenset(("split", "splits", "set", "subset", "partition", "phase", "usage"))
"""Names of columns, in lower case, in which tables of images keep splits."""
_FLAG = re.compile(rf"(is|in)({'|'.join(_HIDDEN)})(set|data|split|image|img|sample)?")
"""Names of columns that say yes or no to one split: `is_valid`, `isTrain`, `is_training_image`."""
_ANSWERS = dict.fromkeys(("true", "yes", "1", "t", "y"), True)
_ANSWERS |= dict.fromkeys(("false", "no", "0", "f", "n"), False)


def may_hold_splits(column: str) -> bool:
    """Whether a column is called as those that tell of each row which split it is in."""
    return column.lower() in SUSPECTED or _FLAG.fullmatch(_whole(column)) is not None


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
        deep = [name for name in names if holds_folders_only(path / name)]
        if len(deep) == len(names):
            raise UserError(f"data.path: {path}: {_why(names, folders)}")
        if any(names[name] == "train" for name in deep):
            raise UserError(f"data.path: {path}: {_why_some(list(names), deep)}")


def _why_some(names: Sequence[str], deep: Sequence[str]) -> str:
    """Word that of folders that are named alike only some hold folders: these are no classes."""
    flat = ", ".join(utf8_text(name) for name in names if name not in deep)
    return (
        f"{_and(names)} are named after splits, but only {', '.join(map(utf8_text, deep))} has "
        f"folders of classes, and {flat} has none: as they stand, they would be classes. Give each "
        "split a folder for each class, or move it out (data.unlabelled takes images without "
        "labels)."
    )


def _why(names: Mapping[str, SplitName], folders: Sequence[Path]) -> str:
    exact = {name: split for name, split in names.items() if name in SPLIT_NAMES} or names
    unread = any(_whole(name) in _HIDDEN.keys() - OTHER_NAMES.keys() for name in names)
    if unread or any(name.lower() not in OTHER_NAMES for name in exact):
        return (
            f"{_and(list(names if unread else exact))} are named after splits and hold folders: as "
            "they stand, they would be classes. Name them train, val and test, with a folder for "
            "each class in them."
        )
    other = [utf8_text(folder.name) for folder in folders if folder.name not in exact]
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
            f"above classes: train/{utf8_text(folder.name)}, and so on."
        )


def refuse_unread(words: Mapping[str, str], own: Collection[str], where: str) -> None:
    """Refuse what is passed over and holds a split by its name, which would be cut anew.

    Args:
        words: Name of each thing that is passed over, and what in it may be the name of a split.
        own: Splits that the source has; what is named after one of these is passed over.
        where: The source, in words.

    Raises:
        UserError: Naming the first.

    Example:
        >>> refuse_unread({"ids": "", "x_dev": "dev"}, ["train"], "a.npz")
        Traceback (most recent call last):
        krscale.errors.UserError: data.path: a.npz: x_dev is named after the split val, but by ...
    """
    for name, word in words.items():
        if (meant := _meant(word)) is not None and meant not in own:
            raise UserError(
                f"data.path: {where}: {utf8_text(name)} is named after the split {meant}, but by a "
                f"word that is not read, so that {meant} would be cut from train. Write one of "
                f"{', '.join(SPLIT_NAMES)} in its place, or leave it out."
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
    listed = ", ".join(map(utf8_text, inside[:5])) + (", ..." if len(inside) > 5 else "")
    what = f"give {top} as data.path" if whole else f"move them into {root}"
    raise UserError(
        f"data.path: {root}: all images are in one folder, which is one class; {utf8_text(top)} "
        f"holds {len(inside)} ({listed}). If these are the classes, {what}."
    )


def refuse_split_column(
    names: Iterable[str], batches: Callable[[str], Iterable[Any]], where: str, advice: str
) -> None:
    """Refuse a table of which a column holds names of splits: they would be cut anew.

    Args:
        names: Of the columns that may be one.
        batches: Yields the values of a column of text, or nothing where it is none.
        where: The table, in words.
        advice: What to do about it, a sentence that takes the name of the column for `{}`.

    Raises:
        UserError: Naming the column.
    """
    for name in names:
        if _FLAG.fullmatch(_whole(name)) and _answers_both(batches(name), where, name):
            raise UserError(
                f"{where}: column {name!r} says of each row whether it is of a split, and all "
                f"would be cut anew. {advice.format(repr(name))}"
            )
        found = _splits_in(batches(name), where, name)
        if len(set(found.values())) > 1:
            listed = ", ".join(sorted(found))
            raise UserError(
                f"{where}: column {name!r} holds names of splits ({listed}), which would be cut "
                f"anew. {advice.format(repr(name))}"
            )


def _splits_in(batches: Iterable[Any], where: str, name: str) -> dict[str, SplitName]:
    """Return the words of a column that name splits, and which.

    Nothing if it holds other words, too: a class may be called train. But in a column that is named
    after splits, train and one more are enough, whatever else stands there.
    """
    suspected = name.lower() in SUSPECTED
    found: dict[str, SplitName] = {}
    others = False
    for column in batches:
        if not _is_text(column.type):
            return {}
        with parsing(f"{where}: column {name!r}: damaged"):
            words = column.unique().to_pylist()
        for word in filter(None, words):  # a row of no split is none of another kind
            meant = _meant(word)
            others |= meant is None and bool(word.strip())
            if meant is not None:
                found[word.strip()] = meant
        if others and not suspected:
            return {}
    return {} if others and "train" not in found.values() else found


def _answers_both(batches: Iterable[Any], where: str, name: str) -> bool:
    """Whether a column holds yes and no, however it writes them, and nothing else."""
    found: set[bool | None] = set()
    for column in batches:
        with parsing(f"{where}: column {name!r}: damaged"):
            words = [
                "" if word is None else str(word).strip() for word in column.unique().to_pylist()
            ]
        found |= {_ANSWERS.get(word.lower()) for word in filter(None, words)}
        if None in found:
            return False
    return len(found) == 2


def _meant(word: str) -> SplitName | None:
    """Return the split that a word names as it stands: `Public Test`, `hold-out`, `train_set`."""
    named = _SPLIT.fullmatch(_whole(word))
    return _HIDDEN[named[1]] if named else None


def _whole(name: str) -> str:
    return "".join(_WORDS.split(name)).lower()


def _is_text(kind: Any) -> bool:
    """Whether an Arrow type is of text, be it by numbers into a dictionary."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def named_alike(names: Sequence[str]) -> list[dict[str, SplitName]]:
    """Return the names that differ in a word for a split and numbers alone, and which split it is.

    Args:
        names: Of files or folders, or paths.

    Example:
        >>> named_alike(["seg_train", "seg_test", "drug_test", "cats"])
        [{'seg_train': 'train', 'seg_test': 'test'}]
    """
    found: dict[tuple[str, ...], dict[str, SplitName]] = {}
    for name in names:
        words = [word.lower() for word in _WORDS.split(name) if word]
        words = [word for word in words if not _COUNTING.fullmatch(word)]
        if _SPLIT.fullmatch(whole := "".join(words)):  # `PublicTest`, `hold-out`
            words = [whole]
        for place, word in enumerate(words):
            if named := _SPLIT.fullmatch(word):
                rest = (*words[:place], named[2] or "", *words[place + 1 :])
                found.setdefault(rest, {})[name] = _HIDDEN[named[1]]
                break
    return [alike for alike in found.values() if len(set(alike.values())) > 1]


def _and(names: Sequence[str]) -> str:
    return ", ".join(map(utf8_text, names[:-1])) + f" and {utf8_text(names[-1])}"
