"""Cut images into train, validation and test, and refuse images that cannot be learned from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from krscale.config import DataConfig
from krscale.data.arrow import Labels, Split
from krscale.data.source import SourceData, SplitName
from krscale.data.splits.stratify import Rows, stratify
from krscale.data.stream import Stream
from krscale.errors import UserError, utf8_text


@dataclass(frozen=True)
class RowCut:
    """Which images each split gets.

    Attributes:
        rows: For every split, the source's split that it comes from, and the numbers of its images
            there.
        proportional: Whether the cut is scikit-learn's; see `stratify`.
    """

    rows: dict[SplitName, tuple[SplitName, Rows]]
    proportional: bool

    def of(self, origin: SplitName) -> dict[SplitName, Rows]:
        """Return the splits that come from one split of the source."""
        return {name: rows for name, (whose, rows) in self.rows.items() if whose == origin}

    @property
    def rules(self) -> dict[str, str]:
        """How the cut differs from scikit-learn's, for the identity of the data set."""
        return {} if self.proportional else {"classes": "each in every split"}


def cut_rows(data: SourceData, config: DataConfig, groups: Rows | None = None) -> RowCut:
    """Return for every split the source's split that it comes from, and its images there.

    Cuts are stratified by class and determined by `config.seed`; images keep their order.

    Args:
        data: Data of the source; only labels are read.
        config: Fractions and seed.
        groups: For each image of the source's train, the number of the first image of its group. A
            group is cut as one image with the label of its first. None makes each image a group.

    Raises:
        UserError: If a class has too few images to be in every split.
    """
    cuts: dict[SplitName, tuple[SplitName, Rows]] = {
        name: (name, np.arange(len(split))) for name, split in data.splits.items()
    }
    wanted: list[tuple[SplitName, float]] = [
        ("test", config.test_fraction),
        ("val", config.val_fraction),
    ]
    missing = [(name, fraction) for name, fraction in wanted if name not in cuts]
    if not missing:
        return RowCut(cuts, True)
    labels = data.splits["train"].labels
    groups = np.arange(len(labels)) if groups is None else groups
    firsts, group_of = np.unique(groups, return_inverse=True)
    try:
        found, proportional = stratify(labels[firsts], data.classes, missing, config.seed)
    except UserError as error:
        copies = len(firsts) < len(labels)
        hint = " data.allow_duplicates = true would count copies as images." if copies else ""
        raise UserError(f"{config.path or config.source}: {error}{hint}") from None
    for name, taken in found.items():
        inside = np.zeros(len(firsts), bool)
        inside[taken] = True
        cuts[name] = ("train", np.flatnonzero(inside[group_of]))
    return RowCut(cuts, proportional)


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
    odd = [ascii(name) for name in data.classes if utf8_text(name) != name]
    if odd:
        raise UserError(f"{source}: names of classes that are not UTF-8: {', '.join(odd[:5])}.")
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
    if len(split) == 0:
        raise UserError(f"{where}: there are no images.")
    check_labels(where, split.labels, num_classes)


def check_labels(where: str, labels: Labels, num_classes: int) -> None:
    """Refuse labels that are outside the classes.

    Raises:
        UserError: If there are such labels; the message names the first.
    """
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

    They are computed from exact counts of the 256 levels and thus do not depend on the machine. A
    constant channel gets the deviation of one level (1/255), which keeps `normalise` finite.
    """
    num_channels = split.images.shape[1]
    counts = np.zeros((num_channels, 256), dtype=np.int64)
    # NumPy counts in int64, which takes eight bytes per byte of a chunk.
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
