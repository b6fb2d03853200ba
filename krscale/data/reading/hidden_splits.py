"""Detect splits whose names the source does not read.

Such data would be read without an error, but with splits as classes, or with the images of the
user's test split used for training.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from krscale.data.reading.own_files import OTHER_NAMES, SPLIT_NAMES
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
"""Names of splits that krscale recognises; it reads only those of `OTHER_NAMES`."""
_SPLIT = re.compile(rf"({'|'.join(_HIDDEN)})(set|data|images|imgs)?[0-9]*")
_COUNTING = re.compile("[0-9]+|of")
"""Words that number the parts of a split: `train-00000-of-00002`."""

SUSPECTED = frozenset(("split", "splits", "set", "subset", "partition", "phase", "usage"))
"""Names of columns, in lower case, that hold splits in tables of images."""
_FLAG = re.compile(rf"(is|in)({'|'.join(_HIDDEN)})(set|data|split|image|img|sample)?")
"""Names of yes-or-no columns for one split: `is_valid`, `isTrain`, `is_training_image`."""
_ANSWERS = dict.fromkeys(("true", "yes", "1", "t", "y"), True)
_ANSWERS |= dict.fromkeys(("false", "no", "0", "f", "n"), False)


def may_hold_splits(column: str) -> bool:
    """Whether a column has a name that is usual for columns that hold the split of each row."""
    return column.lower() in SUSPECTED or _FLAG.fullmatch(_whole(column)) is not None


def refuse_half(path: Path, folders: Sequence[Path], holds_classes: Callable[[Path], bool]) -> None:
    """Refuse folders if only some of them are splits: all would be read as classes.

    Classes may be called train and test, too, but then they hold images; splits hold folders.

    Args:
        path: The parent of the folders.
        folders: The folders, not all of which are named `train`, `val` or `test`.
        holds_classes: Returns whether a folder holds folders, and few images beside them.

    Raises:
        UserError: If folders whose names differ only in the split, such as `seg_train` and
            `seg_test`, all hold folders of classes, or if the train folder does.
    """
    for names in named_alike([folder.name for folder in folders]):
        deep = [name for name in names if holds_classes(path / name)]
        if len(deep) == len(names):
            raise UserError(f"data.path: {path}: {_why(names, folders)}")
        if any(names[name] == "train" for name in deep):
            raise UserError(f"data.path: {path}: {_why_some(list(names), deep)}")


def _why_some(names: Sequence[str], deep: Sequence[str]) -> str:
    """Return the message for folders named after splits of which only some hold folders."""
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
    """Refuse a class with its images in folders of splits, which would be ignored and cut anew.

    Args:
        folder: Folder of the class.
        inside: Names of the folders in it that hold images.

    Raises:
        UserError: If there are such folders; the message names them.
    """
    for names in named_alike(inside):
        raise UserError(
            f"data.path: {folder}: its images are in folders named after splits "
            f"({', '.join(names)}), which would be put together and cut anew. krscale reads splits "
            f"above classes: train/{utf8_text(folder.name)}, and so on."
        )


def refuse_unread(words: Mapping[str, str], own: Collection[str], where: str) -> None:
    """Refuse data that would be skipped although its name means a split, which would be cut anew.

    Args:
        words: Name of each skipped item, and the part of it that may be the name of a split.
        own: Splits that the source has; items named after one of these may be skipped.
        where: Description of the source.

    Raises:
        UserError: If there is such an item; the message names the first.

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
    """Refuse a folder that is the only class and contains folders that are probably the classes.

    Args:
        root: The parent of the folder.
        files: Paths of all images.
        whole: Whether `root` is `data.path`, and not one of its splits.

    Raises:
        UserError: If there are such folders; the message says where they are.
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
    """Refuse a table with a column of split names: the splits would be ignored and cut anew.

    Args:
        names: Names of the columns to examine.
        batches: Yields the values of a column in batches.
        where: Description of the table.
        advice: A sentence on what to do about it, with `{}` for the name of the column.

    Raises:
        UserError: If there is such a column; the message names it.
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
    """Return the words of a column that name splits, and the splits they name.

    The result is empty if the column holds other words, too: a class may be called train. In a
    column whose name suggests splits, however, other words are ignored if one of the words means
    train.
    """
    suspected = name.lower() in SUSPECTED
    found: dict[str, SplitName] = {}
    others = False
    for column in batches:
        if not _is_text(column.type):
            return {}
        with parsing(f"{where}: column {name!r}: damaged"):
            words = column.unique().to_pylist()
        for word in filter(None, words):  # rows without a split are ignored
            meant = _meant(word)
            others |= meant is None and bool(word.strip())
            if meant is not None:
                found[word.strip()] = meant
        if others and not suspected:
            return {}
    return {} if others and "train" not in found.values() else found


def _answers_both(batches: Iterable[Any], where: str, name: str) -> bool:
    """Whether a column holds both yes and no, in any spelling, and nothing else."""
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
    """Return the split that a word or phrase names: `Public Test`, `hold-out`, `train_set`."""
    named = _SPLIT.fullmatch(_whole(word))
    return _HIDDEN[named[1]] if named else None


def _whole(name: str) -> str:
    return "".join(_WORDS.split(name)).lower()


def _is_text(kind: Any) -> bool:
    """Whether an Arrow type is text, also if it is dictionary-encoded."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def named_alike(names: Sequence[str]) -> list[dict[str, SplitName]]:
    """Group the names that differ only in a word for a split and in numbers; map each to its split.

    Args:
        names: Names of files or folders, or paths.

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
