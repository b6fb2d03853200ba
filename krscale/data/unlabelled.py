"""Images for methods with a teacher: training images, followed by those without labels.

They form a separate data set whose only split is `train`, so that all code that reads a training
split can read it. The labelled data are not changed: the teacher trains on them alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from filelock import FileLock

from krscale.config import DataConfig, fingerprint
from krscale.data.arrow import Split
from krscale.data.building import FORMAT, write_data
from krscale.data.content import Content
from krscale.data.dataset import SPLITS, Dataset, open_data
from krscale.data.joining import joined_splits
from krscale.data.seen import Fault, UnreadableError, skipped_notes
from krscale.data.source import Note, Report, SourceData, SplitName
from krscale.data.splits.duplicates import Digests, digests
from krscale.data.splits.skipping import without
from krscale.data.splits.stratify import Rows
from krscale.data.stream import Stream, spill
from krscale.data.unlabelled_sources import UnlabelledSource, open_unlabelled
from krscale.errors import UserError
from krscale.leftovers import hidden_lock, sweep_leftovers
from krscale.storage.folders import present, publish

_LISTED = 3  # maximum number of pairs of copies that a message names
_NAME = "unlabelled"


def prepare_unlabelled(
    config: DataConfig,
    dataset: Dataset,
    cache: Path,
    report: Report | None = None,
    note: Note | None = None,
) -> Dataset:
    """Return the images for methods with a teacher: `dataset` itself without `data.unlabelled`.

    Otherwise return its train followed by the unlabelled images, built once under `cache`. Copies
    of training images are left out, since training uses them with their labels.

    Args:
        config: The data section.
        dataset: The labelled images, prepared.
        cache: Folder that runs share.
        report: Called with the number of images done and of all images while they are read.
        note: Called while the data set is built, with what the user should know.

    Raises:
        UserError: If the images cannot be read, are of another shape, or are copies of validation
            or test images (unless `data.allow_duplicates`).
    """
    if not config.unlabelled:
        return dataset
    source = open_unlabelled(config, dataset.image_shape[0])
    identity = _identity(config, dataset, source)
    path = _path(dataset, identity, cache)
    if not present(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_leftovers(path.parent)
        with FileLock(hidden_lock(path)):
            if not path.is_dir():
                notes = _build(path, config, dataset, source, identity, report or _silent)
                if note:
                    for text in notes:
                        note(text)
    publish(path)
    return open_data(path)


def find_unlabelled(config: DataConfig, dataset: Dataset, cache: Path) -> Dataset | None:
    """Return what `prepare_unlabelled` built under `cache`; None if it was never prepared."""
    if not config.unlabelled:
        return dataset
    source = open_unlabelled(config, dataset.image_shape[0])
    path = _path(dataset, _identity(config, dataset, source), cache)
    return open_data(path) if present(path) else None


@dataclass(frozen=True)
class Unlabelled:
    """Images without labels that have been read.

    Attributes:
        data: Data of their source.
        split: The readable images, mapped from the caller's folder.
        skipped: The images that were left out because they cannot be read.
    """

    data: SourceData
    split: Split
    skipped: tuple[Fault, ...]

    def notes(self, config: DataConfig) -> tuple[str, ...]:
        """Return notes on what was done to them, one sentence each."""
        where, seen = config.unlabelled, self.data.seen
        of_seen = seen.notes(where, config.background) if seen else ()
        return (*self.data.notes, *skipped_notes(where, self.skipped), *of_seen)


def read_unlabelled(
    source: UnlabelledSource, config: DataConfig, shape: tuple[int, ...], report: Report, to: Path
) -> Unlabelled:
    """Read all unlabelled images.

    Args:
        source: A source from `open_unlabelled`.
        config: The data section.
        shape: `(C, H, W)` of the labelled images.
        report: Called with the number of images done and of all images.
        to: Folder that images are written to; the split is mapped from it.

    Raises:
        UserError: If images cannot be read, or are of another shape.
    """
    data, skipped = source.read(report), tuple[Fault, ...]()
    check_shape(data, config, shape)
    try:
        split = _read(data, config, to)
    except UnreadableError as error:
        if not config.skip_unreadable:
            raise
        skipped = error.faults
        data = without(data, skipped)
        (to / "readable").mkdir()
        split = _read(data, config, to / "readable")
    if not len(split):
        raise UserError(f"data.unlabelled: {config.unlabelled}: no image there can be read.")
    return Unlabelled(data, split, skipped)


def check_shape(data: SourceData, config: DataConfig, shape: tuple[int, ...]) -> None:
    """Refuse images of another shape than the labelled ones.

    Raises:
        UserError: If the shapes differ; the message names both.
    """
    found = data.splits["train"].image_shape
    if found != shape:
        theirs, ours = ("x".join(map(str, numbers)) for numbers in (found, shape))
        hint = ""
        if found[0] == shape[0] and shape[1] == shape[2] and data.seen is not None:
            hint = f" data.files.image_size = {shape[1]} scales and cuts them to the same."
        raise UserError(
            f"data.unlabelled: {config.unlabelled}: its images are {theirs} (channels, height, "
            f"width), the labelled ones {ours}.{hint}"
        )


@dataclass(frozen=True)
class Copies:
    """Which unlabelled images are also among the labelled ones.

    Attributes:
        of_train: Numbers of those that are also in train, `[n]`.
        judged: Numbers of those that are also in validation or test, by split.
    """

    of_train: Rows
    judged: Mapping[SplitName, Rows]

    @classmethod
    def find(cls, known: Mapping[SplitName, Digests], unlabelled: Digests) -> Copies:
        """Compare digests of the labelled images, by split, with those of the unlabelled."""
        found = {name: np.flatnonzero(np.isin(unlabelled, known[name])) for name in known}
        of_train = found.pop("train")
        return cls(of_train, {name: numbers for name, numbers in found.items() if len(numbers)})

    def renumbered(self, numbers: Rows) -> Copies:
        """Return the same copies with other image numbers: the i-th image becomes `numbers[i]`."""
        judged = {name: numbers[found] for name, found in self.judged.items()}
        return Copies(numbers[self.of_train], judged)

    def problem(self, config: DataConfig, data: SourceData) -> str:
        """Return why they are refused; empty if they are not."""
        if not self.judged or config.allow_duplicates:
            return ""
        pairs = [
            f"{data.place('train', int(number))} (in {name})"
            for name, numbers in self.judged.items()
            for number in numbers[:_LISTED]
        ]
        count = sum(len(numbers) for numbers in self.judged.values())
        return (
            f"data.unlabelled: {config.unlabelled}: images that are also in validation or test, "
            f"pixel by pixel: {count}: {'; '.join(pairs[:_LISTED])}"
            f"{'; ...' if count > _LISTED else ''}. Images that were learned from do not show how "
            "well others are recognised: remove them, or go on as it is with "
            "data.allow_duplicates = true."
        )

    def notes(self, config: DataConfig) -> tuple[str, ...]:
        """Return notes on copies of validation or test images, and on what was left out."""
        lines = [
            f"{config.unlabelled}: unlabelled images that are also in {name}, pixel by pixel: "
            f"{len(numbers)}."
            for name, numbers in self.judged.items()
        ]
        if len(self.of_train):
            lines.append(
                f"{config.unlabelled}: unlabelled images that are also among the labelled training "
                f"images, pixel by pixel: {len(self.of_train)}; they are left out here."
            )
        return tuple(lines)


def _build(
    path: Path,
    config: DataConfig,
    dataset: Dataset,
    source: UnlabelledSource,
    identity: dict[str, Any],
    report: Report,
) -> list[str]:
    """Build the folder and return notes for the user about its content."""
    # Placed beside the data, since the system's temporary folder may be held in memory.
    with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        found = read_unlabelled(source, config, dataset.image_shape, report, Path(scratch))
        pixels = digests(found.split.images)
        known = {
            name: digests(dataset.split(name).images)
            for name in SPLITS
            if name in dataset.num_samples
        }
        copies = Copies.find(known, pixels)
        if problem := copies.problem(config, found.data):
            raise UserError(problem)
        kept = np.setdiff1d(np.arange(len(pixels)), copies.of_train)
        if not len(kept):
            raise UserError(
                f"data.unlabelled: {config.unlabelled}: all of its {len(pixels)} images are also "
                "among the labelled training images; there is nothing to learn from them."
            )
        target = Path(scratch) / "joined"
        joined = joined_splits(dataset.split("train"), found.split, target, kept)
        content = Content((), {"train": pixels[kept]}, {"train": found.split.labels[kept]}, ())
        notes = [*found.notes(config), *copies.notes(config)]
        facts = {
            "source": dataset.source,
            # Copying files or changing only their times leaves the fingerprint as it is.
            "fingerprint": fingerprint({"of": dataset.fingerprint, _NAME: content.digest}),
            "identity": identity,
            "classes": dataset.classes,
            "image_shape": dataset.image_shape,
            "mean": dataset.mean,
            "std": dataset.std,
            "num_unlabelled": len(kept),
            "unlabelled": content.digest,
            "notes": notes,
            "skipped": [str(fault) for fault in found.skipped],
        }
        write_data(path, {"train": joined}, facts)
    return notes


def _read(data: SourceData, config: DataConfig, to: Path) -> Split:
    images = data.splits["train"]
    if isinstance(images, Stream):
        images = spill(images, {"train": np.arange(len(images))}, to)["train"]
    if data.seen is not None:
        data.seen.refuse(config.unlabelled)
    return images


def _identity(config: DataConfig, dataset: Dataset, source: UnlabelledSource) -> dict[str, Any]:
    """Return what determines the images; for labelled ones, this is their content."""
    identity = {"format": FORMAT, "of": dataset.fingerprint, _NAME: dict(source.identity())}
    return identity | ({"allow_duplicates": True} if config.allow_duplicates else {})


def _path(dataset: Dataset, identity: Mapping[str, Any], cache: Path) -> Path:
    name = dataset.source.replace(":", ".")
    return cache / "data" / f"{name}-{fingerprint(identity)}"


def _silent(_done: int, _all: int) -> None:
    """Report nothing."""
