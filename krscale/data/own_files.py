"""What the sources of one's own files share: files by split, labels by class, where an image is."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krscale.config import DataConfig, FilesConfig
from krscale.data.arrow import Labels
from krscale.data.source import Place, SplitName
from krscale.data.walking import printable
from krscale.errors import UserError, nearest

MAX_CLASSES = 2**16
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

Values = npt.NDArray[Any]
"""Labels as they are written: `[N]` whole numbers, or `[N]` names as objects."""


def existing_path(config: DataConfig, wanted: str) -> Path:
    """Return `data.path`, or say what it should be.

    Raises:
        UserError: If it is empty or does not exist.
    """
    if not config.path:
        raise UserError(f"data.path: the source {config.source!r} needs a path: {wanted}.")
    path = Path(config.path).expanduser()
    if not path.exists():
        raise UserError(f"data.path: {path}: no such file or folder; expected {wanted}.")
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
            raise UserError(f"{printable(file)}: cannot be read ({error.strerror}).") from None
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
    for name in ("path_column", "split_column", "channels"):
        if settings[name] == FilesConfig.model_fields[name].default:
            del settings[name]
    if config.background != "ignore":
        settings["background"] = config.background
    later = {"map_labels": config.map_labels, "skip_unreadable": config.skip_unreadable}
    return settings | {name: True for name, is_set in later.items() if is_set}


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

    def __call__(self, number: int) -> str:
        """Word where a value is: file, column and row, all as other programs count them."""
        ends = np.cumsum(self.num_rows)
        file = int(np.searchsorted(ends, number, side="right"))
        row = number - int(ends[file] - self.num_rows[file]) + (0 if file else self.start)
        return f"{self.files[file]}: column {self.column!r}: row {row}"


def class_names(
    given: Sequence[str], found: Values, place: Place, map_labels: bool = False
) -> tuple[str, ...]:
    """Return the names of the classes: those given, else those found in the training images.

    Args:
        given: `data.files.classes`.
        found: Labels of the training images as they are written.
        place: Words where each of them is.
        map_labels: Whether numbers are classes as they come, and not indices from 0.

    Raises:
        UserError: If numbers leave some out without `map_labels`, or are too large to be classes,
            or names are empty or differ only in what nobody sees.
    """
    if map_labels and found.dtype != object:
        return _mapped_names(given, found, place)
    if given:
        return tuple(given)
    if found.dtype == object:
        names = tuple(sorted(set(found)))
        _check_names(names, found, place)
        return names
    first = int(np.argmax(found)) if len(found) else 0
    largest = int(found.max(initial=-1))
    if largest >= MAX_CLASSES:
        raise UserError(
            f"{place(first)}: the label {largest} would make more than {MAX_CLASSES} classes; is "
            "data.files.label_column the right one?"
        )
    present = np.unique(found)
    if len(present) <= largest:
        absent = np.setdiff1d(np.arange(largest + 1), present)
        raise UserError(
            f"{place(first)}: labels are numbers up to {largest}, but no training image has "
            f"{_some(absent)}. data.map_labels = true makes classes of the numbers that there are "
            f"({_some(present)}); or is data.files.label_column another one?"
        )
    return tuple(str(number) for number in range(largest + 1))


def _mapped_names(given: Sequence[str], found: Values, place: Place) -> tuple[str, ...]:
    present = np.unique(found)
    if len(present) > MAX_CLASSES or (len(present) and present[0] < 0):
        first = int(np.argmin(found))
        raise UserError(
            f"{place(first)}: labels are {len(present)} different numbers, the smallest "
            f"{present[0]}; data.map_labels takes at most {MAX_CLASSES}, from 0 on."
        )
    if given and len(given) != len(present):
        raise UserError(
            f"data.files.classes: {len(given)} names for the {len(present)} labels that there are: "
            f"{_some(present)}."
        )
    return tuple(given) or tuple(str(number) for number in present)


def name_numbers(
    names: Sequence[str], classes: tuple[str, ...], found: Values, map_labels: bool
) -> tuple[str, ...]:
    """Return the names that files give to their numbers, where classes are numbers.

    Args:
        names: Of the numbers from 0; there may be more than are found.
        classes: As of `class_names`.
        found: Labels of the training images as they are written.
        map_labels: As of `class_names`.
    """
    if found.dtype == object or int(found.max(initial=-1)) >= len(names):
        return classes
    if map_labels:
        return tuple(names[number] for number in np.unique(found))
    return tuple(names[: len(classes)])


def _some(numbers: Values) -> str:
    listed = ", ".join(str(number) for number in numbers[:10])
    return listed + (", ..." if len(numbers) > 10 else "")


def _check_names(names: Sequence[str], found: Values, place: Place) -> None:
    by_look: dict[str, str] = {}
    for name in names:
        where = place(int(np.flatnonzero(found == name)[0]))
        check_text(name, where)
        look = same_look(name)
        if not look:
            raise UserError(f"{where}: the label {name!r} is empty.")
        if look in by_look:
            raise UserError(
                f"{where}: the class {name!a} looks like the class {by_look[look]!a}: they "
                "differ in spaces at their ends or in the Unicode form of a letter; make them one."
            )
        by_look[look] = name


def same_look(name: str) -> str:
    """Return what is seen of a name: without spaces at its ends, in one Unicode form."""
    return unicodedata.normalize("NFC", name).strip()


def check_text(name: str, where: str) -> None:
    """Refuse the name of a class that cannot be written down.

    Raises:
        UserError: If it holds bytes that are no UTF-8.
    """
    if printable(name) != name:
        raise UserError(
            f"data.path: {printable(where)}: the name of a class is not UTF-8: rename it."
        )


def alike(classes: Sequence[str], where: str) -> tuple[str, ...]:
    """Say which names of classes differ in case only, in one line, or nothing.

    They are not refused: letters are classes of their own.
    """
    by_case: dict[str, list[str]] = {}
    for name in classes:
        if len(name) > 1:
            by_case.setdefault(name.casefold(), []).append(name)
    same = [" / ".join(names) for names in by_case.values() if len(names) > 1]
    if not same:
        return ()
    return (f"{where}: classes that differ in case only: {', '.join(same[:5])}.",)


def to_labels(
    values: Values, classes: Sequence[str], place: Place, mapped: Values | None = None
) -> Labels:
    """Return `values` as indices into the classes.

    Args:
        values: Labels as they are written.
        classes: Names of the classes.
        place: Words where each of them is.
        mapped: With `data.map_labels`, the labels of the training images: the i-th smallest number
            is class i.

    Raises:
        UserError: Naming the first image whose label is outside the classes.
    """
    if values.dtype == object:
        numbers = {name: number for number, name in enumerate(classes)}
        labels = np.array([numbers.get(name, -1) for name in values], dtype=np.int64)
    elif mapped is not None:
        known = np.unique(mapped)
        at = np.searchsorted(known, values).clip(max=len(known) - 1)
        labels = np.where(known[at] == values, at, -1)
    else:
        labels = values.astype(np.int64)
    outside = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(outside):
        raise _outside(values[outside[0]], classes, place(int(outside[0])), len(outside))
    return labels


def _outside(value: Any, classes: Sequence[str], where: str, count: int) -> UserError:
    allowed = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    hint = ""
    if isinstance(value, str):
        same = next((name for name in classes if same_look(name) == same_look(value)), None)
        guess = same or nearest(value, classes)
        hint = f" Did you mean {ascii(guess) if same else repr(guess)}?" if guess else ""
        value = ascii(value) if same else printable(value)
    number = "" if isinstance(value, str) else f" (numbers 0..{len(classes) - 1})"
    more = f" and {count - 1} more" if count > 1 else ""
    return UserError(
        f"{where}: the label {value!s}{more} is outside the {len(classes)} classes{number}: "
        f"{allowed}.{hint} data.files.classes names them."
    )
