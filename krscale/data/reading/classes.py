"""Classes of the user's own files: their names, and labels as indices into them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from krscale.config import DataConfig
from krscale.data.arrow import Labels
from krscale.data.source import Place
from krscale.errors import UserError, nearest, utf8_text

MAX_CLASSES = 2**16
Values = npt.NDArray[Any]
"""Labels as they are stored: `[N]` whole numbers, or `[N]` names as objects."""


def find_classes(
    config: DataConfig, names: Sequence[str], values: Values, place: Place
) -> tuple[str, ...]:
    """Return the names of the classes: `data.files.classes`, else those of the files, else labels.

    Names that files give to their numbers are treated in the same way for all sources: each name
    must have a training image, and each number a name.

    Args:
        config: The data section.
        names: Names that the files give to the numbers from 0; empty if they give none. If labels
            are text, these are the classes in this order.
        values: Labels of the training images as they are stored.
        place: Describes where each of them is.

    Raises:
        UserError: If labels are not classes, or names and labels do not match.
    """
    given, mapped = config.files.classes, config.map_labels
    if given or not names:
        return class_names(given, values, place, mapped)
    where = config.path or config.source
    there = set(values.tolist())
    if values.dtype != object:
        outside = np.flatnonzero(values >= len(names))
        if len(outside):
            first = int(outside[0])
            raise UserError(
                f"{place(first)}: the label {values[first]} has no name: {where} names "
                f"{listed(names)} (numbers 0..{len(names) - 1}). data.files.classes names others."
            )
    absent = [n for i, n in enumerate(names) if (n if values.dtype == object else i) not in there]
    if absent and not mapped:
        raise UserError(
            f"{where}: {len(absent)} of {len(names)} classes have no training image: "
            f"{listed(absent)}. data.map_labels = true leaves them out."
        )
    if values.dtype == object:
        return tuple(name for name in names if name not in absent)
    class_names((), values, place, mapped)  # refuses labels that cannot be classes
    return tuple(names[number] for number in np.unique(values) if number >= 0)


def listed(names: Sequence[str]) -> str:
    """Return at most ten of the names in one line."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def class_names(
    given: Sequence[str], found: Values, place: Place, map_labels: bool = False
) -> tuple[str, ...]:
    """Return the names of the classes: those given, else those found in the training images.

    Args:
        given: `data.files.classes`.
        found: Labels of the training images as they are stored.
        place: Describes where each of them is.
        map_labels: Whether the numbers that occur are the classes, instead of indices from 0.

    Raises:
        UserError: If numbers have gaps without `map_labels` or are too large to be classes, or if
            names are empty or differ only invisibly.
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


def _some(numbers: Values) -> str:
    listed = ", ".join(str(number) for number in numbers[:10])
    return listed + (", ..." if len(numbers) > 10 else "")


def _check_names(names: Sequence[str], found: Values, place: Place) -> None:
    by_look: dict[str, str] = {}
    written = found.tolist()  # numpy ignores trailing zeros when it compares text
    for name in names:
        where = place(written.index(name))
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
    """Return a name without spaces at its ends and in one Unicode form, for comparison."""
    return unicodedata.normalize("NFC", name).strip()


def check_text(name: str, where: str) -> None:
    """Refuse the name of a class that cannot be written as UTF-8.

    Raises:
        UserError: If it holds bytes that are not UTF-8.
    """
    if utf8_text(name) != name:
        raise UserError(
            f"data.path: {utf8_text(where)}: the name of a class is not UTF-8: rename it."
        )


def alike(classes: Sequence[str], where: str) -> tuple[str, ...]:
    """Return a line that lists class names that differ only in case; empty if there are none.

    They are not refused, and names of a single letter are not listed: those are separate classes.
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
        values: Labels as they are stored.
        classes: Names of the classes.
        place: Describes where each of them is.
        mapped: With `data.map_labels`, the labels of the training images; the i-th smallest number
            is class i.

    Raises:
        UserError: If a label is outside the classes; the message names the first such image.
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
        allowed = f"0..{len(classes) - 1}" if mapped is None else _some(np.unique(mapped))
        where = place(int(outside[0]))
        raise _outside(values[outside[0]], classes, allowed, where, len(outside))
    return labels


def _outside(value: Any, classes: Sequence[str], numbers: str, where: str, count: int) -> UserError:
    allowed = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    hint = ""
    if isinstance(value, str):
        same = next((name for name in classes if same_look(name) == same_look(value)), None)
        guess = same or nearest(value, classes)
        hint = f" Did you mean {ascii(guess) if same else repr(guess)}?" if guess else ""
        value = ascii(value) if same else utf8_text(value)
    number = "" if isinstance(value, str) else f" (numbers {numbers})"
    more = f" and {count - 1} more" if count > 1 else ""
    return UserError(
        f"{where}: the label {value!s}{more} is outside the {len(classes)} classes{number}: "
        f"{allowed}.{hint} data.files.classes names them."
    )
