"""Images that were given as objects: read once, and kept as files that the source `numpy` reads.

So a run on objects is like any other: its data are found again, compared and counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from krscale.data.given_items import read_items
from krscale.data.own_files import SPLIT_NAMES
from krscale.data.pixels import Normalisation
from krscale.data.source import SplitName
from krscale.digests import check_file, write_digest
from krscale.errors import UserError, unknown_name
from krscale.files import new_folder

WANTED = (
    "a data set or a loader of (image, label), a pair of arrays (images, labels), (train, val), "
    "(train, val, test), or a dictionary of train, val and test"
)
_ORDER: tuple[SplitName, ...] = ("train", "val", "test")


def given_folder(cache: Path) -> Path:
    """Return the folder of all images that were given as objects."""
    return cache / "given"


@dataclass(frozen=True)
class GivenData:
    """Data that were given as objects, as files.

    Attributes:
        table: The section `data` of an experiment that reads them.
        is_float: Whether images were floats, which networks take as they are; whole numbers have
            to be normalised first.
    """

    table: dict[str, Any]
    is_float: bool


def keep_given(data: Any, normalisation: Normalisation | None, folder: Path) -> GivenData:
    """Read all images and write them below a folder, once for each content.

    Args:
        data: As `WANTED` says; every image is read once.
        normalisation: What the images were normalised by; None where they were not.
        folder: Where folders named by their content are made.

    Raises:
        UserError: If they are no images and labels, or differ from one reading to the next.
    """
    found = {
        split: read_items(part, f"data: {split}", normalisation)
        for split, part in _by_split(data).items()
    }
    kinds = {items.is_float for items in found.values()}
    if len(kinds) > 1:
        raise UserError("data: images of some splits are floats, of others whole numbers.")
    classes = next((items.classes for items in found.values() if items.classes), ())
    channels = "first" if all(items.channels_first for items in found.values()) else "auto"
    arrays: dict[str, Any] = {}
    for split, items in found.items():
        arrays |= {f"{split}_images": items.images, f"{split}_labels": items.labels}
    path = _written(arrays, folder)
    files = {"channels": channels, "classes": classes}
    return GivenData({"source": "numpy", "path": str(path), "files": files}, kinds.pop())


def _by_split(data: Any) -> dict[SplitName, Any]:
    """Return the parts of what was given, by split."""
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
        return dict(zip(_ORDER, data, strict=False))
    return {"train": data}


def _is_array(value: Any) -> bool:
    return hasattr(value, "ndim") and hasattr(value, "dtype")


def _written(arrays: Mapping[str, Any], folder: Path) -> Path:
    """Write arrays into a folder named by their content, unless it is there.

    Raises:
        DamagedFileError: If what is there is not what was written.
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
    """Say how images that were given as objects, and are damaged where they are kept, come back."""
    return f"Delete the folder {folder}; the call that was given the images writes it again."
