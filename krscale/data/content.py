"""Content of a data set, image by image: one digest of all of it, and the split of each image."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from krscale.data.arrow import Labels, Split
from krscale.data.source import SplitName
from krscale.data.splits.counting import count
from krscale.data.splits.duplicates import Digests, digests
from krscale.digests import check_file
from krscale.files import damaged, write_atomic
from krscale.foreign import regular

SPLITS_FILE = "splits.csv"
"""List of the split of each image, one per line; kept beside the splits and in each run folder."""
_HEADER = ("path", "label", "split", "pixels")
_LISTED = 5  # maximum number of classes that a message names

Paths = Mapping[SplitName, Sequence[str]]
"""Path of each image of each split, in the order of the split."""


@dataclass(frozen=True)
class Content:
    """All images of a data set, by the digests of their pixels.

    Attributes:
        classes: Names of the classes.
        pixels: Digests `[N]` of each split.
        labels: Labels `[N]` of each split.
        image_shape: `(C, H, W)` of every image.
    """

    classes: tuple[str, ...]
    pixels: Mapping[SplitName, Digests]
    labels: Mapping[SplitName, Labels]
    image_shape: tuple[int, ...]

    @classmethod
    def of(
        cls,
        classes: Sequence[str],
        splits: Mapping[SplitName, Split],
        pixels: Mapping[SplitName, Digests] | None = None,
    ) -> Content:
        """Describe splits; read all their images if the digests are not given."""
        if pixels is None:
            pixels = {name: digests(split.images) for name, split in splits.items()}
        labels = {name: np.asarray(split.labels) for name, split in splits.items()}
        return cls(tuple(classes), pixels, labels, next(iter(splits.values())).image_shape)

    @property
    def digest(self) -> str:
        """32 hexadecimal digits; equal if all splits hold equal images in equal order."""
        found = hashlib.sha256("\0".join((*self.classes, str(self.image_shape))).encode())
        for name in sorted(self.pixels):
            found.update(f"\0{name} {len(self.pixels[name])}\0".encode())
            found.update(self.pixels[name].astype("<u8").tobytes())
            found.update(self.labels[name].astype("<i8").tobytes())
        return found.hexdigest()[:32]


def write_split_list(path: Path, content: Content, paths: Paths) -> None:
    """Write the split of each image, one line per image."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            # Of line ends, csv.writer by itself quotes only its own terminator, but a reader also
            # ends lines at "\r".
            quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
            rows.writerow(_HEADER)
            for name, pixels in content.pixels.items():
                labels = (content.classes[label] for label in content.labels[name])
                for place, label, digest in zip(paths[name], labels, pixels, strict=True):
                    row = (place, label, name, f"{int(digest):016x}")
                    (quoted if "\r" in place + label else rows).writerow(row)

    write_atomic(path, write)


@dataclass(frozen=True)
class Line:
    """One image of a split list."""

    path: str
    label: str
    split: str
    pixels: str


def read_split_list(path: Path) -> Iterator[Line]:
    """Yield the lines of a list of `write_split_list`.

    Raises:
        DamagedFileError: If it is not such a list.
    """
    check_file(path)
    with regular(path).open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        try:
            if tuple(next(rows, ())) != _HEADER:
                raise damaged(path, f"its first line is not {','.join(_HEADER)}")
            for row in rows:
                yield Line(*row)
        except (TypeError, csv.Error, UnicodeDecodeError) as error:
            raise damaged(path, f"line {rows.line_num}: {error}") from None


@dataclass
class Difference:
    """How the images of two split lists differ: numbers of images by class."""

    removed: Counter[str] = field(default_factory=Counter)
    added: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    relabelled: Counter[str] = field(default_factory=Counter)
    moved: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """Return the differences as one phrase."""
        parts = [
            _counted(self.removed, "removed"),
            _counted(self.added, "added"),
            _counted(self.changed, "with other pixels"),
            _counted(self.relabelled, "with another label"),
            _counted(self.moved, "in another split"),
        ]
        return ", ".join(part for part in parts if part) or "the same images in another order"


def compare_lists(before: Path, now: Path) -> Difference:
    """Return how the images of two split lists differ.

    Images are identified by pixels and label, so that a renamed file is still the same image. Among
    the remaining files, two with the same path count as one image that has changed.
    """
    old, new = _by_image(before), _by_image(now)
    gone: dict[str, Line] = {}
    came: dict[str, Line] = {}
    found = Difference()
    for image in old.keys() | new.keys():
        was, now_is = old.get(image, []), new.get(image, [])
        both = Counter(line.split for line in was) & Counter(line.split for line in now_is)
        kept = min(len(was), len(now_is))
        if moved := kept - both.total():
            found.moved[image[0]] += moved
        present = {line.path for line in was} & {line.path for line in now_is}
        # Among copies, those whose path is in both lists count as still present.
        ordered = (
            sorted(lines, key=lambda line: line.path not in present) for lines in (was, now_is)
        )
        for lines, rest in zip(ordered, (gone, came), strict=True):
            rest.update({line.path: line for line in lines[kept:]})
    for path, line in gone.items():
        other = came.pop(path, None)
        if other is None:
            found.removed[line.label] += 1
        elif other.label == line.label:
            found.changed[line.label] += 1
        else:
            found.relabelled[f"{line.label} -> {other.label}"] += 1
    found.added.update(line.label for line in came.values())
    return found


def compare_counts(before: Mapping[str, int], now: Mapping[str, int]) -> str:
    """Return how the numbers of images per class differ, for use where no split list exists."""
    difference = Counter(dict(now))
    difference.subtract(before)
    found = Difference(removed=-difference, added=+difference)
    return (
        str(found) if found.removed or found.added else "as many images of every class, but others"
    )


def count_by_class(classes: Sequence[str], labels: Mapping[SplitName, Labels]) -> dict[str, int]:
    """Return the number of images of each class in all splits."""
    found: Counter[str] = Counter(dict.fromkeys(classes, 0))
    for of_split in labels.values():
        found.update(count(classes, of_split))
    return dict(found)


def _by_image(path: Path) -> dict[tuple[str, str], list[Line]]:
    found: dict[tuple[str, str], list[Line]] = {}
    for line in read_split_list(path):
        found.setdefault((line.label, line.pixels), []).append(line)
    return found


def _counted(classes: Counter[str], what: str) -> str:
    if not classes:
        return ""
    listed = ", ".join(f"{name} {count}" for name, count in classes.most_common(_LISTED))
    more = ", ..." if len(classes) > _LISTED else ""
    number = classes.total()
    return f"{number} image{'s' * (number != 1)} {what} ({listed}{more})"
