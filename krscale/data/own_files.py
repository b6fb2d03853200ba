"""What the sources of one's own files share: files by split, labels by class, where an image is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krscale.config import DataConfig
from krscale.data.arrow import Labels
from krscale.data.source import SplitName
from krscale.errors import UserError, nearest

MAX_CLASSES = 2**16
SPLIT_NAMES: dict[str, SplitName] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
"""Names of folders, or first words of file names, that say which split is in them."""

Values = npt.NDArray[Any]
"""Labels as they are written: `[N]` whole numbers, or `[N]` names as objects."""


def existing_path(config: DataConfig, wanted: str) -> Path:
    """Return `data.path`, or say what it should be.

    Raises:
        UserError: If it is empty or does not exist.
    """
    if not config.path:
        raise UserError(f"data.path: the source {config.source!r} needs a path: {wanted}.")
    path = Path(config.path).expanduser()
    if not path.exists():
        raise UserError(f"data.path: {path}: no such file or folder; expected {wanted}.")
    return path


def files_identity(config: DataConfig, root: Path, files: Iterable[str]) -> dict[str, Any]:
    """Return what determines the images: settings, and name, size and time of every file.

    Content is not read, since that would take as long as preparing the data: a file that changes
    without a new size or time of change is not noticed.
    """
    digest, num_files = hashlib.sha256(), 0
    for file in files:
        facts = Path(file).stat()
        name = file.removeprefix(str(root))
        digest.update(f"{name}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
        num_files += 1
    settings = config.files.model_dump(mode="json")
    return {"files": digest.hexdigest(), "num_files": num_files, **settings}


def own_splits(files: Mapping[SplitName, object]) -> tuple[SplitName, ...]:
    """Return the splits that need not be cut from the training images."""
    return tuple(name for name in files if name != "train")


@dataclass(frozen=True)
class ImageLocations:
    """Where the images of a split are.

    Attributes:
        files: In order.
        num_rows: Images in each.
    """

    files: Sequence[Path]
    num_rows: Sequence[int]

    def __call__(self, number: int) -> str:
        """Word where an image is: file and row, both as other programs count them."""
        ends = np.cumsum(self.num_rows)
        file = int(np.searchsorted(ends, number, side="right"))
        row = number - int(ends[file] - self.num_rows[file])
        return f"{self.files[file]}: row {row}"


def class_names(given: Sequence[str], found: Values, where: str) -> tuple[str, ...]:
    """Return the names of the classes: those given, else those found in the training images.

    Raises:
        UserError: If the labels are numbers too large to be classes.
    """
    if given:
        return tuple(given)
    if found.dtype == object:
        return tuple(sorted(set(found)))
    largest = int(found.max(initial=-1))
    if largest >= MAX_CLASSES:
        raise UserError(
            f"{where}: the label {largest} would make more than {MAX_CLASSES} classes; is "
            "data.files.label_column the right one?"
        )
    return tuple(str(number) for number in range(largest + 1))


def to_labels(values: Values, classes: Sequence[str], place: Callable[[int], str]) -> Labels:
    """Return `values` as indices into the classes.

    Raises:
        UserError: Naming the first image whose label is outside the classes.
    """
    if values.dtype == object:
        numbers = {name: number for number, name in enumerate(classes)}
        labels = np.array([numbers.get(name, -1) for name in values], dtype=np.int64)
    else:
        labels = values.astype(np.int64)
    outside = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(outside):
        raise _outside(values[outside[0]], classes, place(int(outside[0])), len(outside))
    return labels


def _outside(value: Any, classes: Sequence[str], where: str, count: int) -> UserError:
    allowed = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    guess = nearest(value, classes) if isinstance(value, str) else None
    hint = f" Did you mean {guess!r}?" if guess else ""
    number = "" if isinstance(value, str) else f" (numbers 0..{len(classes) - 1})"
    more = f" and {count - 1} more" if count > 1 else ""
    return UserError(
        f"{where}: the label {value!s}{more} is outside the {len(classes)} classes{number}: "
        f"{allowed}.{hint} data.files.classes names them."
    )
