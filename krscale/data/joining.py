"""Join train and validation into one split, on which a chosen student is trained again."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from filelock import FileLock

from krscale.config import fingerprint
from krscale.data.arrow import Split
from krscale.data.building import FORMAT, write_data
from krscale.data.dataset import Dataset, open_data
from krscale.data.reading.decoding import piece_size
from krscale.data.splits.stratify import Rows
from krscale.leftovers import hidden_lock, sweep_leftovers
from krscale.storage.folders import present, publish


def join_train_and_val(dataset: Dataset, cache: Path) -> Dataset:
    """Return a data set whose only split, `train`, is train followed by validation.

    It is built once under `cache`, like any data set. Mean and standard deviation stay those of
    `dataset`, with which its teacher was trained. Training images keep their numbers and thus their
    views, unless views are mixed: partners are drawn from all images that are trained on.
    """
    identity, path = _identity(dataset), joined_path(dataset, cache)
    if not present(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_leftovers(path.parent)
        with FileLock(hidden_lock(path)):
            if not path.is_dir():
                facts = {
                    "source": dataset.source,
                    "identity": identity,
                    "classes": dataset.classes,
                    "image_shape": dataset.image_shape,
                    "mean": dataset.mean,
                    "std": dataset.std,
                }
                # Placed beside the data: the images may not fit into memory, where the system's
                # temporary folder may be held.
                with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
                    parts = dataset.split("train"), dataset.split("val")
                    joined = joined_splits(*parts, Path(scratch) / "images")
                    write_data(path, {"train": joined}, facts)
    publish(path)
    return open_data(path)


def joined_path(dataset: Dataset, cache: Path) -> Path:
    """Return the folder that `join_train_and_val` builds or reuses; it need not exist."""
    name = dataset.source.replace(":", ".")  # callables contain a colon; as for other data sets
    return cache / "data" / f"{name}-{fingerprint(_identity(dataset))}"


def _identity(dataset: Dataset) -> dict[str, Any]:
    return {"format": FORMAT, "joined": ["train", "val"], "of": dataset.fingerprint}


def joined_splits(first: Split, second: Split, scratch: Path, rows: Rows | None = None) -> Split:
    """Return the images of one split followed by those of another.

    Args:
        first: A split with at least one image.
        second: A split of the same image shape.
        scratch: File that the images are written to and mapped from.
        rows: Numbers of the images of the second to take, ascending; None takes all.
    """
    rows = np.arange(len(second)) if rows is None else rows
    shape = (len(first) + len(rows), *first.image_shape)
    images = np.memmap(scratch, dtype=np.uint8, mode="w+", shape=shape)
    images[: len(first)], size = first.images, piece_size(shape[1:])
    for start in range(0, len(rows), size):  # indexing copies rows, so take a piece at a time
        piece = rows[start : start + size]
        at = len(first) + start
        images[at : at + len(piece)] = second.images[piece]
    return Split(images, np.concatenate([first.labels, second.labels[rows]]))
