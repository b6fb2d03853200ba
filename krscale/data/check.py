"""Check all images of a source before anything is built: its contents and its problems."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from krscale.config import DataConfig
from krscale.data.seen import Seen
from krscale.data.source import Report, SourceData, SplitName
from krscale.data.sources.registry import open_source
from krscale.data.splits.counting import count, describe
from krscale.data.splits.duplicates import Digests, digests_of, groups_of_copies
from krscale.data.splits.limiting import limit_images
from krscale.data.splits.skipping import without
from krscale.data.splits.splitting import check_labels, check_source, cut_rows
from krscale.data.splits.stratify import Rows
from krscale.data.unlabelled_check import check_unlabelled
from krscale.errors import UserError


@dataclass(frozen=True)
class Group:
    """Images with the same pixels.

    Attributes:
        places: Description of where each image is.
        labels: The class of each.
        splits: The split of the source that each is in.
    """

    places: tuple[str, ...]
    labels: tuple[str, ...]
    splits: tuple[str, ...]

    @property
    def across(self) -> bool:
        """Whether the images are in several splits that the user defined."""
        return len(set(self.splits)) > 1

    @property
    def differ(self) -> bool:
        """Whether one image has several labels."""
        return len(set(self.labels)) > 1


@dataclass(frozen=True)
class Check:
    """What a source holds.

    Attributes:
        source: Its name.
        path: What it reads; empty for embedded sources.
        classes: Names of the classes.
        image_shape: `(C, H, W)` of the first image that can be read.
        counts: Readable images by split, then class. If the missing splits cannot be cut, these are
            the splits of the source.
        modes: Colour modes of the files, with the number of files; empty if nothing is decoded.
        sizes: Height and width of the images in the files, as `HxW`, with the number of images.
        unreadable: All images that cannot be read.
        misfits: All images whose size differs from that of the first.
        copies: Images with the same pixels.
        too_small: Classes with too few different images for a share in every split.
        notes: What else the user should know, e.g. which files were skipped.
        problems: Why `teach` and `tune` would refuse it; empty if they would not.
        unlabelled: Path of the images without labels; empty if there are none.
        num_unlabelled: Number of images without labels that can be read and are not copies of
            training images.
    """

    source: str
    path: str
    classes: tuple[str, ...]
    image_shape: tuple[int, ...]
    counts: Mapping[str, Mapping[str, int]]
    modes: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    unreadable: tuple[str, ...] = ()
    misfits: tuple[str, ...] = ()
    copies: tuple[Group, ...] = ()
    too_small: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    unlabelled: str = ""
    num_unlabelled: int = 0

    @property
    def num_images(self) -> int:
        """Images that can be read."""
        return sum(sum(of_class.values()) for of_class in self.counts.values())

    def summary(self) -> str:
        """Return a one-line summary."""
        where = self.path or self.source
        parts = [describe(where, self.classes, self.image_shape, self.counts)]
        num_copies = sum(len(group.places) - 1 for group in self.copies)
        num_differ = sum(group.differ for group in self.copies)
        for number, what in (
            (num_copies, "copies of others"),
            (num_differ, "under two labels"),
            (len(self.unreadable), "unreadable"),
            (len(self.misfits), "of another size"),
        ):
            if number:
                parts.append(f"{number} {what}")
        if self.unlabelled:
            parts.append(f"{self.num_unlabelled:,} without labels ({self.unlabelled})")
        return "; ".join(parts)


def check_data(config: DataConfig, report: Report = lambda done, total: None) -> Check:
    """Read every image of a source once and return what it holds; write nothing.

    Args:
        config: The source, and how it would be cut.
        report: Called with the number of images done and the number of all images.

    Raises:
        UserError: If nothing can be checked: the path does not exist, or labels are not classes.
    """
    data = open_source(config).read(report)
    for name, split in data.splits.items():
        check_labels(f"{config.source}: {name}", split.labels, len(data.classes))
    if not _problem(partial(check_source, config.source, data)):
        data = limit_images(data, config)
    pixels = {name: digests_of(split) for name, split in data.splits.items()}
    seen = data.seen or Seen()
    copies = tuple(_groups(data, pixels, seen))
    where, met, problems = config.path or config.source, deepcopy(seen), []
    if config.skip_unreadable:
        seen.left_out |= {(fault.split, fault.number) for fault in seen.unreadable}
    problems.append(_problem(partial(seen.refuse, where)))
    readable = without(data, seen.unreadable) if seen.unreadable else data
    pixels = {n: _readable(pixels[n], n, seen.left_out) for n in pixels}
    problems.append(_problem(partial(check_source, config.source, readable)))
    counts, too_small, cut_problem, rows = _cut(readable, config, pixels)
    problems.append(cut_problem)
    if not config.allow_duplicates and not data.published:
        problems += [_across(copies)]
    shape = next(iter(data.splits.values())).image_shape
    known = {name: pixels[origin][places] for name, (origin, places) in rows.items()}
    beside = check_unlabelled(config, shape, known, report)
    return Check(
        source=config.source,
        path=config.path,
        classes=data.classes,
        image_shape=shape,
        counts=counts,
        modes=dict(met.modes.most_common()),
        sizes={f"{h}x{w}": count for (h, w), count in met.sizes.most_common()},
        unreadable=tuple(map(str, met.unreadable)),
        misfits=tuple(map(str, met.misfits)),
        copies=copies,
        too_small=too_small,
        notes=(*data.notes, *met.notes(where, config.background), *beside.notes),
        problems=tuple(problem for problem in (*problems, *beside.problems) if problem),
        unlabelled=config.unlabelled,
        num_unlabelled=beside.num_images,
    )


def _readable(pixels: Digests, name: str, left_out: set[tuple[str, int]]) -> Digests:
    gone = [number for split, number in left_out if split == name]
    return np.delete(pixels, gone)


def _groups(data: SourceData, pixels: Mapping[SplitName, Digests], seen: Seen) -> Iterator[Group]:
    """Yield groups of copies, without faulty images, which are all black."""
    faulty = {(fault.split, fault.number) for fault in (*seen.unreadable, *seen.misfits)}
    whole = np.concatenate(list(pixels.values()))
    names = [name for name, found in pixels.items() for _ in range(len(found))]
    numbers = np.concatenate([np.arange(len(found)) for found in pixels.values()])
    group_of = groups_of_copies(whole)
    sizes = np.bincount(group_of, minlength=len(whole))
    members: dict[int, list[int]] = {}
    for index in np.flatnonzero(sizes[group_of] > 1):
        if (names[index], int(numbers[index])) not in faulty:
            members.setdefault(int(group_of[index]), []).append(int(index))
    for of_group in members.values():
        if len(of_group) < 2:
            continue
        images = [(names[index], int(numbers[index])) for index in of_group]
        yield Group(
            tuple(data.place(name, number) for name, number in images),
            tuple(data.classes[data.splits[name].labels[number]] for name, number in images),
            tuple(name for name, _ in images),
        )


def _cut(
    data: SourceData, config: DataConfig, pixels: Mapping[SplitName, Digests]
) -> tuple[dict[str, dict[str, int]], dict[str, int], str, dict[SplitName, tuple[SplitName, Rows]]]:
    """Return counts by split and class, classes that are too small, and why it cannot be cut.

    Also return which images of the source each split has; if it cannot be cut, the splits are those
    of the source.
    """
    groups = None if config.allow_duplicates else groups_of_copies(pixels["train"])
    counts: dict[str, dict[str, int]] = {}
    try:
        rows = _rows(data, config, groups)
    except UserError as error:
        for name, split in data.splits.items():
            counts[name] = count(data.classes, split.labels)
        needed = 1 + sum(name not in data.splits for name in ("val", "test"))
        labels = data.splits["train"].labels
        different = labels if groups is None else labels[np.unique(groups)]
        found = count(data.classes, different)
        too_small = {name: n for name, n in found.items() if n < needed}
        own = {name: (name, np.arange(len(split))) for name, split in data.splits.items()}
        return counts, too_small, str(error), own
    for name in sorted(rows, key=_ORDER.index):
        origin, places = rows[name]
        counts[name] = count(data.classes, data.splits[origin].labels[places])
    return counts, {}, "", rows


def _rows(
    data: SourceData, config: DataConfig, groups: Rows | None
) -> dict[SplitName, tuple[SplitName, Rows]]:
    """Return the cut of `cut_splits`: copies matter only if a first cut separates some."""
    cut = cut_rows(data, config)
    if groups is None:
        return cut.rows
    part = np.zeros(len(groups), np.int64)
    for number, rows in enumerate(cut.of("train").values()):
        part[rows] = number
    if np.array_equal(part, part[groups]):
        return cut.rows
    return cut_rows(data, config, groups).rows


_ORDER: tuple[SplitName, ...] = ("train", "val", "test")


def _across(copies: Sequence[Group]) -> str:
    shared = [group for group in copies if group.across]
    if not shared:
        return ""
    first = " = ".join(
        f"{place} ({split})"
        for place, split in zip(shared[0].places, shared[0].splits, strict=True)
    )
    return f"{len(shared)} images are in two splits, pixel by pixel: {first}" + (
        "; ..." if len(shared) > 1 else ""
    )


def _problem(check: Callable[[], None]) -> str:
    try:
        check()
    except UserError as error:
        return str(error)
    return ""
