"""Labels of all splits as indices into the classes of train, whatever each split calls its own.

Files name classes split by split and file by file: number 0 may be `ant` in one and `bee` in
another. Numbers are compared by these names wherever there are any, never by themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from krscale.config import DataConfig
from krscale.data.arrow import Labels
from krscale.data.classes import Values, find_classes, listed, same_look, to_labels
from krscale.data.source import Place, SplitName
from krscale.errors import UserError


@dataclass(frozen=True)
class Written:
    """Labels of one split, or of one file of it, as they are written.

    Attributes:
        values: Whole numbers, or text.
        place: Words where each of them is.
        names: What its own files call the numbers from 0; empty where they do not.
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

    A split without names of its own has those of train, and train without any those of the others.

    Args:
        parts: At least `"train"`.
        config: The data section.

    Raises:
        UserError: If labels are no classes, or those of a split are none of train's.
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
    """Return the labels of several files as those of one, with the names of all of them.

    Args:
        parts: All of them numbers, or all of them text.
        place: Words where each of all values is.
    """
    names = tuple(dict.fromkeys(name for part in parts for name in part.names))
    values = [part.values if part.is_text else renumbered(part, names) for part in parts]
    return Written(np.concatenate(values), place, names)


def renumbered(part: Written, names: Sequence[str]) -> Values:
    """Return numbers that have names of their own as numbers of the same among `names`.

    Raises:
        UserError: Naming the first label whose name is not there.
    """
    own = part.names
    if not own or own == tuple(names):
        return part.values
    _refuse_unnamed(part.values, own, part.place)
    # Numbers that no image has may be called alike: lists of names are filled up with `unused`.
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
    """Return numbers as the names that they have.

    Raises:
        UserError: Naming the first number without one.
    """
    _refuse_unnamed(part.values, names, part.place)
    return np.array(names, dtype=object)[part.values]


def numbers_are_names(numbers: Values, names: Sequence[str]) -> bool:
    """Whether each number, written down, is itself one of the names: 3 of `0, 1, 10, 11, 2, 3`."""
    return {str(number) for number in np.unique(numbers)} <= set(names)


def _given_by_name(config: DataConfig, names: Sequence[str], train: Written) -> bool:
    """Whether `data.files.classes` holds the names that labels have already, in whatever order.

    Other names are new ones for the numbers, in their order.

    Raises:
        UserError: If it holds some of them, and at other places: it may mean both.
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
    """Refuse new names of which one, but for its case, is that of another class.

    Args:
        config: The data section.
        names: What the files call the numbers.
        renamed: Those of them that have new names, in this order.
    """
    given = config.files.classes
    places = {name: place for place, name in enumerate(given)}
    own = set(names)  # which may be `A` and `a`
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
    """Return the numbers that train has for the same classes.

    Text that is no name of train's is left as it is, since it may be one of the classes.
    """
    if not part.is_text:
        return renumbered(part, names)
    numbers = {name: number for number, name in enumerate(names)}
    found = [numbers.get(value, -1) for value in part.values]
    return part.values if -1 in found else np.array(found, np.int64)


def _refuse_unknown_numbers(
    values: Values, classes: Sequence[str], part: Written, split: SplitName
) -> None:
    """Refuse numbers, where labels of train are text, that no class is called by."""
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
