"""Cut the images of a source into train, validation and test splits that share no image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from krscale.config import DataConfig
from krscale.data.arrow import Images, Labels, Split
from krscale.data.reading.decoding import piece_size
from krscale.data.source import SourceData, SplitName
from krscale.data.splits.duplicates import Digests, Shared, digests, groups_of_copies, shared_images
from krscale.data.splits.splitting import RowCut, cut_rows
from krscale.data.splits.stratify import Rows
from krscale.data.stream import Stream, spill
from krscale.errors import UserError

_LISTED = 3  # maximum number of pairs of copies, and of classes, that a message names


@dataclass(frozen=True)
class Cut:
    """Images in train, validation and test.

    Attributes:
        splits: All three.
        rows: Which images of the source each of them has.
        pixels: Digests of their images.
        rules: How the cut differs from the first result of `cut_rows`; part of the data set's
            identity.
        notes: What the user should know about it, one sentence each.
    """

    splits: dict[SplitName, Split]
    rows: RowCut
    pixels: dict[SplitName, Digests]
    rules: dict[str, str]
    notes: tuple[str, ...]


def cut_splits(data: SourceData, config: DataConfig, scratch: Path) -> Cut:
    """Return all three splits: those of the source, and the missing ones cut from its train.

    Wherever krscale makes the cut, images with the same pixels are put into the same split.

    Args:
        data: Data of the source.
        config: Fractions and seed of the cuts, and whether splits may share images.
        scratch: Folder for images that are streamed; the splits are mapped from it.

    Raises:
        UserError: If images cannot be read, a class has too few to be in every split, or two splits
            that the user defined share images.
    """
    cut = cut_rows(data, config)
    splits = _read(data, cut, scratch)
    if data.seen is not None:
        data.seen.refuse(_where(config))
    found = {name: digests(split.images) for name, split in splits.items()}
    shared = shared_images(found)
    rules, notes = cut.rules, _absent_classes(data, config, splits)
    if shared and config.allow_duplicates:
        return Cut(splits, cut, found, rules, (*notes, *(_count(config, pair) for pair in shared)))
    fixed = [pair for pair in shared if len({cut.rows[name][0] for name in pair.names}) > 1]
    if fixed and not data.published:
        raise _refusal(data, config, cut, fixed)
    notes += tuple(_count(config, pair) for pair in fixed)
    if len(fixed) < len(shared):
        whole = _whole(cut.of("train"), found)
        groups = groups_of_copies(whole)
        again = cut_rows(data, config, groups)
        splits |= _recut(splits, cut.of("train"), again.of("train"), scratch)
        rules = again.rules | {"copies": "in one split"}
        notes += (_count_copies(config, groups, data.splits["train"].labels),)
        cut, found = again, found | {n: whole[rows] for n, rows in again.of("train").items()}
    return Cut(splits, cut, found, rules, notes)


def _read(data: SourceData, cut: RowCut, scratch: Path) -> dict[SplitName, Split]:
    found: dict[SplitName, Split] = {}
    for origin, images in data.splits.items():
        rows = cut.of(origin)
        if isinstance(images, Stream):
            found |= spill(images, rows, scratch)
        else:
            found |= {name: _take(images, places) for name, places in rows.items()}
    return {"train": found["train"], "val": found["val"], "test": found["test"]}


def _take(split: Split, rows: Rows) -> Split:
    if len(rows) == len(split):
        return split
    return Split(split.images[rows], split.labels[rows])


def _whole(parts: Mapping[SplitName, Rows], found: Mapping[SplitName, Digests]) -> Digests:
    """Return the digests of the images of the source's train, in its order."""
    whole = np.empty(sum(len(rows) for rows in parts.values()), np.uint64)
    for name, rows in parts.items():
        whole[rows] = found[name]
    return whole


def _recut(
    splits: Mapping[SplitName, Split],
    old: Mapping[SplitName, Rows],
    new: Mapping[SplitName, Rows],
    scratch: Path,
) -> dict[SplitName, Split]:
    """Rearrange images that were cut in one way into splits that are cut in another way."""
    num_images = sum(len(rows) for rows in old.values())
    part, place = np.empty(num_images, np.int64), np.empty(num_images, np.int64)
    for number, rows in enumerate(old.values()):
        part[rows], place[rows] = number, np.arange(len(rows))
    parts = [splits[name] for name in old]

    def pieces() -> Iterator[Images]:
        size = piece_size(parts[0].image_shape)
        for start in range(0, num_images, size):
            whose, where = part[start : start + size], place[start : start + size]
            piece = np.empty((len(whose), *parts[0].image_shape), np.uint8)
            for number, split in enumerate(parts):
                piece[whose == number] = split.images[where[whose == number]]
            yield piece

    labels = np.empty(num_images, np.int64)
    for name, rows in old.items():
        labels[rows] = splits[name].labels
    folder = scratch / "again"
    folder.mkdir()
    return spill(Stream(labels, parts[0].image_shape, pieces), new, folder)


def _where(config: DataConfig) -> str:
    return config.path or config.source


def _count(config: DataConfig, pair: Shared) -> str:
    one, other = pair.names
    return (
        f"{_where(config)}: images of {other} that are also in {one}, pixel by pixel: {len(pair)}."
    )


def _count_copies(config: DataConfig, groups: Rows, labels: Labels) -> str:
    num_copies = int((groups != np.arange(len(groups))).sum())
    num_other = int((labels != labels[groups]).sum())
    other = f" ({num_other} of them with another class)" if num_other else ""
    return (
        f"{_where(config)}: images that are copies of others, pixel by pixel: {num_copies}{other}; "
        "all copies of an image are in the same split."
    )


def _refusal(
    data: SourceData, config: DataConfig, cut: RowCut, shared: Sequence[Shared]
) -> UserError:
    """Return an error that names the first images that two splits of the user share."""
    pairs, root = [], f"{Path(config.path).expanduser()}{os.sep}"
    for found in shared:
        for numbers in zip(found.first[:_LISTED], found.second[:_LISTED], strict=True):
            places = []
            for name, number in zip(found.names, numbers, strict=True):
                origin, rows = cut.rows[name]
                place = data.place(origin, int(rows[number])).removeprefix(root)
                places.append(f"{place} ({name})")
            pairs.append(" = ".join(places))
    count = sum(len(found) for found in shared)
    more = "; ..." if count > _LISTED else ""
    return UserError(
        f"{_where(config)}: images that are in two splits, pixel by pixel: {count}: "
        f"{'; '.join(pairs[:_LISTED])}{more}. Images that were learned do not show how well "
        "others are recognised: remove one of each, or go on as it is with "
        "data.allow_duplicates = true."
    )


def _absent_classes(
    data: SourceData, config: DataConfig, splits: Mapping[SplitName, Split]
) -> tuple[str, ...]:
    """Return notes on the classes that a split of the source lacks; its accuracy ignores them."""
    notes = []
    for name in data.splits:
        present = np.bincount(splits[name].labels, minlength=len(data.classes))
        absent = [data.classes[number] for number in np.flatnonzero(present == 0)]
        if absent:
            listed = ", ".join(absent[:_LISTED]) + (", ..." if len(absent) > _LISTED else "")
            count = f"{len(absent)} of {len(data.classes)} classes"
            notes.append(f"{_where(config)}: {name} has no image of {count}: {listed}.")
    return tuple(notes)
