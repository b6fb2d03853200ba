"""Train and validation as one split, for a student that has been chosen and learns once more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from filelock import FileLock

from krscale.config import fingerprint
from krscale.data.arrow import Split
from krscale.data.dataset import FORMAT, Dataset, open_data, write_data


def join_train_and_val(dataset: Dataset, cache: Path) -> Dataset:
    """Return a data set whose only split, `train`, is train followed by validation.

    It is built once under `cache`, as any data set. Mean and standard deviation stay those of
    `dataset`, which its teacher was trained with; training images keep their number, hence their
    views.
    """
    identity = {"format": FORMAT, "joined": ["train", "val"], "of": dataset.fingerprint}
    path = cache / "data" / f"{dataset.source}-{fingerprint(identity)}"
    if not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if not path.is_dir():
                facts = {
                    "source": dataset.source,
                    "identity": identity,
                    "classes": dataset.classes,
                    "image_shape": dataset.image_shape,
                    "mean": dataset.mean,
                    "std": dataset.std,
                }
                write_data(path, {"train": _joined(dataset)}, facts)
    return open_data(path)


def _joined(dataset: Dataset) -> Split:
    parts = (dataset.split("train"), dataset.split("val"))
    return Split(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )
