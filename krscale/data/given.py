"""Images given as objects: read once and stored as files for the source `numpy`.

This way, the data of a run on objects can be found again, compared and counted as for any run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from krscale.data.given_items import Items, read_items
from krscale.data.reading.naming import Written, named, numbers_are_names, renumbered
from krscale.data.reading.own_files import SPLIT_NAMES
from krscale.data.reading.pixels import Array, Normalisation
from krscale.data.source import Place, SplitName
from krscale.digests import check_file, write_digest
from krscale.errors import UserError, unknown_name
from krscale.files import new_folder

WANTED = (
    "a data set or a loader of (image, label), a pair of arrays (images, labels), (train, val), "
    "(train, val, test), or a dictionary of train, val and test"
)
_ORDER: tuple[SplitName, ...] = ("train", "val", "test")


def given_folder(cache: Path) -> Path:
    """Return the folder for all images that were given as objects."""
    return cache / "given"


@dataclass(frozen=True)
class GivenData:
    """Data that were given as objects, stored as files.

    Attributes:
        table: The `data` section of an experiment that reads these files.
        is_float: Whether images were floats, which networks take as they are. Whole numbers must be
            normalised first.
    """

    table: dict[str, Any]
    is_float: bool


def keep_given(
    data: Any,
    normalisation: Normalisation | None,
    folder: Path,
    files: Mapping[str, Any] | None = None,
) -> GivenData:
    """Read all images and write them below a folder, unless equal content is already there.

    Args:
        data: One of the forms listed in `WANTED`; every image is read once.
        normalisation: Normalisation that was applied to the images; None if there was none.
        folder: Folder in which a folder named by the content is created.
        files: Additional settings of `data.files`. Their classes are compared by name with those of
            the data, as for any files.

    Raises:
        UserError: If the data are not images and labels, or differ from one reading to the next.
    """
    found = {
        split: read_items(part, f"data: {split}", normalisation)
        for split, part in _by_split(data).items()
    }
    kinds = {items.is_float for items in found.values()}
    if len(kinds) > 1:
        raise UserError("data: images of some splits are floats, of others whole numbers.")
    classes, labels = _classes_and_labels(found)
    channels = "first" if all(items.channels_first for items in found.values()) else "auto"
    arrays: dict[str, Any] = {}
    for split, items in found.items():
        arrays |= {f"{split}_images": items.images, f"{split}_labels": labels[split]}
    files = files or {}
    if classes and ("classes" in files or len(np.unique(labels["train"])) < len(classes)):
        # Written as a file: `data.map_labels` then leaves out classes without an image.
        arrays["classes"], classes = np.array(classes), ()
    path = _written(arrays, folder)
    files = {"channels": channels, "classes": classes, **files}
    return GivenData({"source": "numpy", "path": str(path), "files": files}, kinds.pop())


def _classes_and_labels(
    found: Mapping[SplitName, Items],
) -> tuple[tuple[str, ...], dict[SplitName, Array]]:
    """Return the names of the classes, and the labels of each split as numbers of these.

    If the names are numbers (folders `0`, `1`, `10`, `2`), labels are returned as text:
    `data.files.classes` matches such names by value, so that label 2 would become class `2` instead
    of the third class.
    """
    names = found["train"].classes
    names = names or next((items.classes for items in found.values() if items.classes), ())
    labels: dict[SplitName, Array] = {}
    for split, items in found.items():
        part = Written(items.labels, _place(split), items.classes)
        labels[split] = renumbered(part, names) if part.names else part.values
    train = labels["train"]
    if not names or train.dtype.kind not in "iu" or not numbers_are_names(train, names):
        return names, labels
    if all(names[number] == str(number) for number in np.unique(train) if number < len(names)):
        return names, labels
    return names, {
        split: named(Written(values, _place(split)), names).astype(str)
        if values.dtype.kind in "iu"
        else values
        for split, values in labels.items()
    }


def _by_split(data: Any) -> dict[SplitName, Any]:
    """Return the given data by split."""
    if isinstance(data, Mapping):
        found: dict[SplitName, Any] = {}
        for name, part in data.items():
            if name not in SPLIT_NAMES:
                raise unknown_name("split", str(name), _ORDER, "data")
            if SPLIT_NAMES[name] in found:
                raise UserError(f"data: the split {SPLIT_NAMES[name]!r} is named twice.")
            found[SPLIT_NAMES[name]] = part
        if "train" not in found:
            raise UserError(f"data: no training images. Wanted: {WANTED}.")
        return found
    if isinstance(data, tuple | list) and len(data) in (2, 3) and not _is_array(data[0]):
        splits = dict(zip(_ORDER, data, strict=False))
        if isinstance(data, list) and all(map(_is_pair_of_arrays, data)):
            raise UserError(
                f"data: a list of {len(data)} pairs (images, labels) may be batches of training "
                f"images, or {' and '.join(splits)}: give {{'train': [...]}}, or a dictionary with "
                "a pair for each split."
            )
        return splits
    return {"train": data}


def _is_pair_of_arrays(part: Any) -> bool:
    return isinstance(part, tuple | list) and len(part) == 2 and _is_array(part[0])


def _place(split: SplitName) -> Place:
    return partial("data: {}: image {}".format, split)


def _is_array(value: Any) -> bool:
    return hasattr(value, "ndim") and hasattr(value, "dtype")


def _written(arrays: Mapping[str, Any], folder: Path) -> Path:
    """Write arrays into a folder named by their content, unless it exists.

    Raises:
        DamagedFileError: If the existing files are not what was written.
    """
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    path = folder / digest.hexdigest()[:16]
    if not path.is_dir():
        with new_folder(path) as temporary:
            for name, array in arrays.items():
                np.save(temporary / f"{name}.npy", array, allow_pickle=False)
                write_digest(temporary / f"{name}.npy")
    for name in arrays:
        check_file(path / f"{name}.npy", rebuild_given(path))
    return path


def rebuild_given(folder: Path) -> str:
    """Return advice on how to restore damaged files of images that were given as objects."""
    return f"Delete the folder {folder}; the call that was given the images writes it again."
