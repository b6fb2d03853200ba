"""Count the images of each class, and summarise the counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from krscale.data.arrow import Labels
from krscale.data.source import SplitName

Counts = Mapping[str, Mapping[str, int]]
"""Images by split, then class."""


def count(classes: Sequence[str], labels: Labels) -> dict[str, int]:
    """Return the number of images of each class; skip those without a label (below 0)."""
    counts = np.bincount(labels[labels >= 0], minlength=len(classes))
    return {name: int(number) for name, number in zip(classes, counts, strict=True)}


def describe(where: str, classes: Sequence[str], shape: Sequence[int], counts: Counts) -> str:
    """Return a one-line summary of the numbers of images and classes of the splits.

    Args:
        where: Name of what was read.
        classes: Names of the classes.
        shape: `(C, H, W)`.
        counts: Counts of each split.
    """
    by_split = {name: sum(of_class.values()) for name, of_class in counts.items()}
    by_class = [sum(found.get(name, 0) for found in counts.values()) for name in classes]
    size = "x".join(str(number) for number in shape)
    splits = ", ".join(f"{name} {number:,}" for name, number in by_split.items())
    return (
        f"{where}: {len(classes)} classes, {sum(by_split.values()):,} images of {size} ({splits}), "
        f"{min(by_class):,} to {max(by_class):,} of a class"
    )


def describe_counts(
    where: str, classes: Sequence[str], shape: Sequence[int], labels: Mapping[SplitName, Labels]
) -> str:
    """Return the same summary for labels; the arguments are as for `describe`."""
    counts: dict[str, dict[str, int]] = {n: count(classes, y) for n, y in labels.items()}
    return describe(where, classes, shape, counts)
