"""Map the labels of all splits to the classes of train, even if splits number them differently.

Each split and each file may name its classes: number 0 may be `ant` in one and `bee` in another. If
there are names, labels are compared by name and never by number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from krscale.config import DataConfig
from krscale.data.arrow import Labels
from krscale.data.reading.classes import Values, find_classes, listed, same_look, to_labels
from krscale.data.source import Place, SplitName
from krscale.errors import UserError


@dataclass(frozen=True)
class Written:
    """Labels of one split, or of one of its files, as they are stored.

    Attributes:
        values: Whole numbers, or text.
        place: Describes where each of them is.
        names: Names that its own files give to the numbers from 0; empty if they give none.
    """

    values: Values
    place: Place
    names: tuple[str, ...] = ()

    @property
    def is_text(self) -> bool:
        """Whether labels are names themselves."""
        return self.values.dtype == object


def read_labels(
    parts: Mapping[SplitName, Written], config: DataConfig
) -> tuple[tuple[str, ...], dict[SplitName, Labels]]:
    """Return the names of the classes, and the labels of every split as indices into them.

    A split without names uses those of train; if train has none, the names of another split are
    used.

    Args:
        parts: At least `"train"`.
        config: The data section.

    Raises:
        UserError: If labels are not classes, or a split has labels that are not among train's.
    """
    train = parts["train"]
    if not len(train.values) and (others := [n for n, part in parts.items() if len(part.values)]):
        raise UserError(
            f"{config.path or config.source}: images of {' and '.join(others)}, but none of train."
        )
    names = train.names
    if not names and not train.is_text:
        names = next((part.names for part in parts.values() if part.names), ())
    if train.is_text or _given_by_name(config, names, train):
        values = {split: _as_text(part, names) for split, part in parts.items()}
    else:
        values = {split: _as_numbers(part, names) for split, part in parts.items()}
        given = config.files.classes
        if given and numbers_are_names(values["train"], given):
            values = {split: _written_down(found) for split, found in values.items()}
    classes = find_classes(config, names, values["train"], train.place)
    if blank := [number for number, name in enumerate(classes) if not same_look(name)]:
        raise UserError(
            f"{config.path or config.source}: the name of class {blank[0]} is empty "
            f"({classes[blank[0]]!r}); data.files.classes names the classes."
        )
    known = values["train"] if config.map_labels else None
    for split, part in parts.items():
        if train.is_text and not part.is_text:
            _refuse_unknown_numbers(values[split], classes, part, split)
    return classes, {
        split: to_labels(values[split], classes, part.place, known) for split, part in parts.items()
    }


def joined(parts: Sequence[Written], place: Place) -> Written:
    """Join the labels of several files, with the names of all of them.

    Args:
        parts: The labels of each file: all numbers, or all text.
        place: Describes where each of the joined values is.
    """
    names = tuple(dict.fromkeys(name for part in parts for name in part.names))
    values = [part.values if part.is_text else renumbered(part, names) for part in parts]
    return Written(np.concatenate(values), place, names)


def renumbered(part: Written, names: Sequence[str]) -> Values:
    """Convert numbers with their own names to the indices of these names in `names`.

    Raises:
        UserError: If a label's name is not in `names`; the message gives the first such label.
    """
    own = part.names
    if not own or own == tuple(names):
        return part.values
    _refuse_unnamed(part.values, own, part.place)
    # Numbers without images may share a name: some lists of names are padded with `unused`.
    _refuse_repeated([own[number] for number in np.unique(part.values)], part.place)
    numbers = {name: number for number, name in enumerate(names)}
    found: Values = np.array([numbers.get(name, -1) for name in own], np.int64)[part.values]
    lacking = np.flatnonzero(found < 0)
    if len(lacking):
        first = int(lacking[0])
        raise UserError(
            f"{part.place(first)}: the label {part.values[first]} is {own[part.values[first]]!r} "
            f"there, of which there is no training image: train has the classes {listed(names)}, "
            f"this split {listed(own)}."
        )
    return found


def named(part: Written, names: Sequence[str]) -> Values:
    """Convert numbers to their names.

    Raises:
        UserError: If a number has no name; the message gives the first such number.
    """
    _refuse_unnamed(part.values, names, part.place)
    return np.array(names, dtype=object)[part.values]


def numbers_are_names(numbers: Values, names: Sequence[str]) -> bool:
    """Whether each number, as text, is one of the names: 3 of `0, 1, 10, 11, 2, 3`."""
    return {str(number) for number in np.unique(numbers)} <= set(names)


def _given_by_name(config: DataConfig, names: Sequence[str], train: Written) -> bool:
    """Whether `data.files.classes` holds the existing names of the labels, in any order.

    Otherwise its names are new names for the numbers, in their order.

    Raises:
        UserError: If it holds some of them at other positions, which is ambiguous.
    """
    given = config.files.classes
    if not given or not names:
        return False
    present = np.unique(train.values).tolist()
    in_range = [number for number in present if 0 <= number < len(names)]
    if in_range == present and {names[number] for number in present} <= set(given):
        return True
    order = in_range if config.map_labels else range(len(names))
    _refuse_moved(config, names, [names[number] for number in order])
    return False


def _refuse_moved(config: DataConfig, names: Sequence[str], renamed: Sequence[str]) -> None:
    """Refuse new names if one of them equals, ignoring case, the existing name of another class.

    Args:
        config: The data section.
        names: Names that the files give to the numbers.
        renamed: Those of `names` that get new names, in the order of the new names.
    """
    given = config.files.classes
    places = {name: place for place, name in enumerate(given)}
    own = set(names)  # which may include both `A` and `a`
    alike = {_look(name): place for name, place in places.items() if name not in own}
    for place, name in enumerate(renamed):
        if place < len(given) and _look(given[place]) == _look(name):
            continue
        moved = places.get(name, alike.get(_look(name)))
        if moved is not None:
            raise UserError(
                f"data.files.classes: {given[moved]!r} is in place {moved} (from 0), but "
                f"{config.path or config.source} gives this name to class {place}: it names "
                f"{listed(names)}. Allowed: all of these names, in any order, or new ones, in the "
                "order of these."
            )


def _look(name: str) -> str:
    return same_look(name).casefold()


def _as_text(part: Written, names: Sequence[str]) -> Values:
    if part.is_text:
        return part.values
    if own := part.names or names:
        return named(part, own)
    return _written_down(part.values)


def _written_down(values: Values) -> Values:
    if values.dtype == object:
        return values
    return np.array([str(number) for number in values.tolist()], dtype=object)


def _as_numbers(part: Written, names: Sequence[str]) -> Values:
    """Return labels as train's numbers for the same classes.

    Text that is not among train's names is returned unchanged, since it may be one of the classes.
    """
    if not part.is_text:
        return renumbered(part, names)
    numbers = {name: number for number, name in enumerate(names)}
    found = [numbers.get(value, -1) for value in part.values]
    return part.values if -1 in found else np.array(found, np.int64)


def _refuse_unknown_numbers(
    values: Values, classes: Sequence[str], part: Written, split: SplitName
) -> None:
    """Refuse numbers that are not names of classes if the labels of train are text."""
    known = set(classes)
    first = next((row for row, value in enumerate(values) if value not in known), None)
    if first is not None and values[first] == str(part.values[first]):
        raise UserError(
            f"{part.place(first)}: the label {part.values[first]} is a number, where those of "
            f"train are text ({listed(classes)}); nothing says which of them the numbers of "
            f"{split} are. Write them alike in all splits."
        )


def _refuse_repeated(names: Sequence[str], place: Place) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{place(0)}: two numbers are named {twice[0]!r}: {listed(names)}.")


def _refuse_unnamed(values: Values, names: Sequence[str], place: Place) -> None:
    outside = np.flatnonzero((values < 0) | (values >= len(names)))
    if len(outside):
        first = int(outside[0])
        raise UserError(
            f"{place(first)}: the label {values[first]} has no name: its files name "
            f"{listed(names)} (numbers 0..{len(names) - 1})."
        )
