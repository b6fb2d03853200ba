"""Cutting images into train, validation and test, and refusing images that cannot be learned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from krscale.config import DataConfig
from krscale.data.arrow import Labels, Split
from krscale.data.source import SourceData, SplitName
from krscale.data.stream import Stream, spill
from krscale.errors import UserError

Rows = npt.NDArray[np.int64]


def cut_splits(data: SourceData, config: DataConfig, scratch: Path) -> dict[SplitName, Split]:
    """Return all three splits: those of the source, and the missing ones cut from its train.

    Args:
        data: Of the source.
        config: Fractions and seed of the cuts.
        scratch: Folder for images that are streamed; the splits are mapped from it.

    Raises:
        UserError: If a class has too few images to be in every split.
    """
    cuts = cut_rows(data, config)
    found: dict[SplitName, Split] = {}
    for origin, images in data.splits.items():
        rows = {name: places for name, (whose, places) in cuts.items() if whose == origin}
        if isinstance(images, Stream):
            found |= spill(images, rows, scratch)
        else:
            found |= {name: _take(images, places) for name, places in rows.items()}
    return {"train": found["train"], "val": found["val"], "test": found["test"]}


def cut_rows(data: SourceData, config: DataConfig) -> dict[SplitName, tuple[SplitName, Rows]]:
    """Return for every split the split of the source it is from, and which of its images.

    Cuts are stratified by class and determined by `config.seed`; images keep their order.

    Raises:
        UserError: If a class has too few images to be in every split.
    """
    cuts: dict[SplitName, tuple[SplitName, Rows]] = {
        name: (name, np.arange(len(split))) for name, split in data.splits.items()
    }
    labels = data.splits["train"].labels
    missing: list[tuple[SplitName, float]] = [
        ("test", config.test_fraction),
        ("val", config.val_fraction),
    ]
    for name, fraction in missing:
        if name not in cuts:
            rows = cuts["train"][1]
            kept, taken = _cut(labels[rows], fraction, config.seed, name)
            cuts["train"], cuts[name] = ("train", rows[kept]), ("train", rows[taken])
    return cuts


def _cut(labels: Labels, fraction: float, seed: int, name: str) -> tuple[Rows, Rows]:
    from sklearn.model_selection import train_test_split  # slow to import, needed once

    try:
        kept, taken = train_test_split(
            np.arange(len(labels)), test_size=fraction, stratify=labels, random_state=seed % 2**32
        )
    except ValueError as error:
        raise UserError(
            f"data: cannot cut {fraction:.0%} of {len(labels)} images for {name}, stratified by "
            f"class: {error}"
        ) from error
    return np.sort(kept), np.sort(taken)


def _take(split: Split, rows: Rows) -> Split:
    if len(rows) == len(split):
        return split
    return Split(split.images[rows], split.labels[rows])


def check_source(source: str, data: SourceData) -> None:
    """Refuse images and labels that cannot be learned from.

    Raises:
        UserError: If there is no image, fewer than two classes, a class without training images,
            a class name given twice, a label outside the classes, or images that are not uint8
            `[N, C, H, W]` of one shape.
    """
    num_classes = len(data.classes)
    if num_classes < 2:
        raise UserError(f"{source}: at least two classes are needed (got {list(data.classes)}).")
    if len(set(data.classes)) != num_classes:
        twice = sorted({name for name in data.classes if data.classes.count(name) > 1})
        raise UserError(f"{source}: class names given twice: {', '.join(twice)}.")
    for name, split in data.splits.items():
        _check_split(f"{source}: {name}", split, num_classes)
    _check_same_shape(source, data.splits)
    present = np.bincount(data.splits["train"].labels, minlength=num_classes)
    empty = [data.classes[index] for index in np.flatnonzero(present == 0)]
    if empty:
        listed = ", ".join(empty[:10]) + (", ..." if len(empty) > 10 else "")
        raise UserError(
            f"{source}: {len(empty)} of {num_classes} classes have no training image: {listed}."
        )


def _check_split(where: str, split: Split | Stream, num_classes: int) -> None:
    if isinstance(split, Split):
        _check_images(where, split)
    labels = split.labels
    if len(split) == 0:
        raise UserError(f"{where}: there are no images.")
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(outside):
        first = outside[0]
        raise UserError(
            f"{where}: {len(outside)} labels are outside 0..{num_classes - 1}; "
            f"the first is {labels[first]} at image {first}."
        )


def _check_images(where: str, split: Split) -> None:
    images, labels = split.images, split.labels
    if images.ndim != 4 or images.dtype != np.uint8:
        raise UserError(
            f"{where}: images must be uint8 [N, C, H, W] (got {images.dtype} {images.shape})."
        )
    if labels.shape != images.shape[:1] or labels.dtype != np.int64:
        raise UserError(
            f"{where}: {len(images)} images need as many int64 labels "
            f"(got {labels.dtype} {labels.shape})."
        )
    if images.size == 0:
        raise UserError(f"{where}: there are no images (shape {images.shape}).")


def _check_same_shape(source: str, splits: Mapping[SplitName, Split | Stream]) -> None:
    shapes = {name: split.image_shape for name, split in splits.items()}
    if len(set(shapes.values())) > 1:
        raise UserError(f"{source}: images of the splits differ in shape [C, H, W]: {shapes}.")


def channel_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, with pixels in 0..1.

    Computed from exact counts of the 256 levels, so that it does not depend on the machine. A
    constant channel gets the deviation of one level (1/255), which keeps `normalise` finite.
    """
    num_channels = split.images.shape[1]
    counts = np.zeros((num_channels, 256), dtype=np.int64)
    # numpy counts in int64: eight bytes for each of a chunk's.
    chunk_size = max(1, 2**21 // int(np.prod(split.image_shape[1:])))
    for start in range(0, len(split), chunk_size):
        chunk = split.images[start : start + chunk_size]
        for channel in range(num_channels):
            counts[channel] += np.bincount(chunk[:, channel].ravel(), minlength=256)
    levels = np.arange(256) / 255
    total = counts.sum(axis=1)
    mean = counts @ levels / total
    variance = (counts * (levels - mean[:, None]) ** 2).sum(axis=1) / total
    deviation = np.maximum(np.sqrt(variance), 1 / 255)
    return tuple(mean.tolist()), tuple(deviation.tolist())
