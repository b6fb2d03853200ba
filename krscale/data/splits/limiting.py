"""Limit the number of training images of a source, for a first look at a large data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt

from krscale.config import DataConfig
from krscale.data.arrow import Labels
from krscale.data.source import SourceData
from krscale.data.splits.skipping import Renumbered, keep
from krscale.data.splits.stratify import Rows
from krscale.errors import UserError

Counts = npt.NDArray[np.int64]


def limit_images(data: SourceData, config: DataConfig) -> SourceData:
    """Return a source with at most `data.max_images` training images; 0 changes nothing.

    Args:
        data: Data of the source, after `check_source`.
        config: The data section.

    Raises:
        UserError: If so few images cannot provide every class to every split.
    """
    train = data.splits["train"]
    kept = taken(train.labels, data.classes, len(data.splits), config)
    if kept is None:
        return data
    return replace(
        data,
        splits={**data.splits, "train": keep(train, kept)},
        places={**data.places, "train": Renumbered(partial(data.place, "train"), kept)},
        notes=(*data.notes, limit_note(len(train), config)),
    )


def taken(
    labels: Labels, classes: Sequence[str], num_splits: int, config: DataConfig
) -> Rows | None:
    """Return the numbers of the training images that `data.max_images` takes; None for all.

    Every class keeps its share of the images, and at least one image for each split that is cut.

    Args:
        labels: Labels `[N]` of the source's training images.
        classes: Names of the classes.
        num_splits: Number of splits that the source itself provides.
        config: The data section.

    Raises:
        UserError: If so few images cannot provide every class to every split.
    """
    if not 0 < config.max_images < len(labels):
        return None
    least = 4 - num_splits  # one for train, and one for each split that is cut from it
    counts = np.bincount(labels, minlength=len(classes))
    least_of_class = np.minimum(counts, least)
    if config.max_images < least_of_class.sum():
        raise UserError(
            f"data.max_images: {config.max_images} images of {config.path or config.source} cannot "
            f"hold {len(classes)} classes in {least} splits; at least {least_of_class.sum()} are "
            "needed."
        )
    return _draw(labels, _shares(counts, config.max_images, least_of_class), config.seed)


def limit_note(num_images: int, config: DataConfig) -> str:
    """Return a note on how many images are taken."""
    return (
        f"{config.path or config.source}: {config.max_images:,} of {num_images:,} training images "
        "are taken (data.max_images)."
    )


def _shares(counts: Counts, total: int, least: Counts) -> Counts:
    """Return how many images of each class to take, `total` overall, by largest remainders."""
    exact = total * counts / counts.sum()
    shares = np.maximum(np.floor(exact).astype(np.int64), least)
    # If the minimum gives rare classes more than their share, the others give up as many.
    while (left := int(total - shares.sum())) != 0:
        gap = exact - shares if left > 0 else shares - exact
        movable = shares < counts if left > 0 else shares > least
        shares[np.argmax(np.where(movable, gap, -np.inf))] += np.sign(left)
    found: Counts = shares
    return found


def _draw(labels: Labels, shares: Counts, seed: int) -> Rows:
    """Return the numbers of the images taken, ascending."""
    # RandomState, because NumPy guarantees that its draws never change.
    order = np.random.RandomState(seed % 2**32).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels, minlength=len(shares))
    number = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[number < np.repeat(shares, counts)])
