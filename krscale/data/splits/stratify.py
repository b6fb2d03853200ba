"""Divide labelled items among splits, or choose some of them, so that every class is there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from krscale.data.arrow import Labels
from krscale.data.source import SplitName
from krscale.errors import UserError

Rows = npt.NDArray[np.int64]
Fractions = Sequence[tuple[SplitName, float]]
"""Splits in the order in which they are cut, each with its share of what the previous one left."""
_LISTED = 10  # maximum number of classes that a message names


def stratify(
    labels: Labels, classes: Sequence[str], fractions: Fractions, seed: int
) -> tuple[dict[SplitName, Rows], bool]:
    """Cut splits from items; those that remain are `train`.

    scikit-learn's stratified cut is used if it gives every class to every split. If it leaves a
    class out or fails, each class contributes the rounded share of its own items, at least one.

    Args:
        labels: `[N]` indices into the classes.
        classes: Names of the classes.
        fractions: Splits to cut, with their shares.
        seed: Seed of the draws.

    Returns:
        The items of each split, ascending, and whether scikit-learn's cut was taken.

    Raises:
        UserError: If a class has fewer items than there are splits; the message names it.

    Example:
        >>> labels = np.repeat([0, 1], [97, 3])  # of the rare class every split gets one
        >>> cut, proportional = stratify(labels, ["many", "rare"], [("test", 0.1), ("val", 0.1)], 0)
        >>> {name: int(labels[rows].sum()) for name, rows in cut.items()}, proportional
        ({'train': 1, 'test': 1, 'val': 1}, False)
    """
    cut = _proportional(labels, fractions, seed)
    if cut and all(_holds_all(labels[rows], len(classes)) for rows in cut.values()):
        return cut, True
    _check_enough(labels, classes, 1 + len(fractions))
    return _class_by_class(labels, len(classes), fractions, seed), False


def of_every_class(labels: Labels, number: int) -> Rows:
    """Choose items so that every class has its share of them; return them ascending.

    Evenly spaced items do not: if labels run through the classes again and again, every second
    item of ten classes has only five of them.

    Args:
        labels: `[N]` indices into the classes.
        number: Maximum number of items.

    Example:
        >>> labels = np.arange(12) % 4  # evenly spaced, six of them would be of two classes
        >>> labels[of_every_class(labels, 4)]
        array([0, 1, 2, 3])
    """
    number = min(number, len(labels))
    by_class = np.argsort(labels, kind="stable")
    return np.sort(by_class[np.arange(number) * len(labels) // max(number, 1)])


def _proportional(labels: Labels, fractions: Fractions, seed: int) -> dict[SplitName, Rows] | None:
    """Return scikit-learn's stratified cut; None if it fails."""
    from sklearn.model_selection import train_test_split  # slow to import and rarely needed

    left = np.arange(len(labels))
    cut: dict[SplitName, Rows] = {}
    for name, fraction in fractions:
        of_left = np.arange(len(left))
        try:
            kept, taken = train_test_split(
                of_left, test_size=fraction, stratify=labels[left], random_state=seed % 2**32
            )
        except ValueError:  # a class has a single item, or a split fewer items than classes
            return None
        left, cut[name] = left[np.sort(kept)], left[np.sort(taken)]
    return {"train": left, **cut}


def _class_by_class(
    labels: Labels, num_classes: int, fractions: Fractions, seed: int
) -> dict[SplitName, Rows]:
    # RandomState, as in scikit-learn, because NumPy guarantees that its draws never change.
    order = np.random.RandomState(seed % 2**32).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels, minlength=num_classes)
    number = np.empty(len(labels), np.int64)  # number of an item within its class, in drawn order
    number[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = np.zeros(num_classes, np.int64)
    cut: dict[SplitName, Rows] = {}
    for later, (name, fraction) in reversed(list(enumerate(reversed(fractions), start=1))):
        left = counts - first
        last = first + np.clip(np.rint(fraction * left).astype(np.int64), 1, left - later)
        inside = (number >= first[labels]) & (number < last[labels])
        cut[name], first = np.flatnonzero(inside), last
    return {"train": np.flatnonzero(number >= first[labels]), **cut}


def _holds_all(labels: Labels, num_classes: int) -> bool:
    return bool(np.bincount(labels, minlength=num_classes).all())


def _check_enough(labels: Labels, classes: Sequence[str], needed: int) -> None:
    counts = np.bincount(labels, minlength=len(classes))
    few = np.flatnonzero(counts < needed)
    if len(few):
        listed = ", ".join(f"{classes[n]!r} has {counts[n]}" for n in few[:_LISTED])
        more = ", ..." if len(few) > _LISTED else ""
        raise UserError(
            f"{len(few)} of {len(classes)} classes have too few different images for a share in "
            f"every split: {listed}{more}; at least {needed} are needed. Add images, leave the "
            "class out, or bring splits of your own."
        )
