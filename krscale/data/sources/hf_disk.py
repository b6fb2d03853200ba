"""The source `hf_disk`: output of `save_to_disk` of Hugging Face's datasets, read as Arrow."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from krscale.config import DataConfig
from krscale.data.reading.decoding import Encoded
from krscale.data.reading.encoded import Part, encoded_data
from krscale.data.reading.hidden_splits import may_hold_splits, refuse_split_column, refuse_unread
from krscale.data.reading.label_column import label_values
from krscale.data.reading.own_files import (
    OTHER_NAMES,
    ImageLocations,
    existing_path,
    files_identity,
    refuse_two_names,
)
from krscale.data.reading.own_files import own_splits as own
from krscale.data.reading.saved_sets import (
    INFO_FILE,
    SETS_FILE,
    STATE_FILE,
    TEXT_ROWS,
    WANTED,
    Saved,
    outside_file,
    split_names,
)
from krscale.data.source import Description, Report, SourceData, SplitName
from krscale.errors import UserError
from krscale.foreign import is_file


class HfDisk:
    """A dataset, or a dictionary of datasets by split, that was saved to disk."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self.path = existing_path(config, WANTED)
        self.others: tuple[str, ...] = ()
        self.splits = self.find_splits()

    @property
    def own_splits(self) -> tuple[SplitName, ...]:
        """Return the splits that were saved."""
        return own(self.splits)

    def identity(self) -> Mapping[str, Any]:
        """Return settings, and name, size and time of every file, including images outside."""
        files: list[str] = []
        image = self.image_column()
        for saved in self.splits.values():
            files += map(str, (*saved.files, saved.folder / INFO_FILE, saved.folder / STATE_FILE))
            outside = dict.fromkeys(saved.outside(image))
            files += filter(is_file, outside)
        return files_identity(self.config, self.path, files) | self._names_of_splits()

    def _names_of_splits(self) -> dict[str, Any]:
        """Return the label names of each split, if they differ.

        Data sets built before labels were compared by name are thus reused only if the names do not
        differ.
        """
        if len(self.splits) == 1:  # there may be no labels
            return {}
        label = self.label_column()
        names = {split: saved.names(label) for split, saved in self.splits.items()}
        return {"names_of_splits": names} if len(set(names.values())) > 1 else {}

    def describe(self) -> Description | None:
        """Return None: `read` decodes one image only."""
        return None

    def read(self, report: Report) -> SourceData:
        """Return the labels, and streams that decode the images."""
        refuse_unread({name: name for name in self.others}, self.splits, str(self.path))
        label, image = self.label_column(), self.image_column()
        if len(self.splits) == 1:
            self._refuse_splits({image, label})
        parts = {split: _part(saved, image, label) for split, saved in self.splits.items()}
        listed = ", ".join(self.others)
        notes = (f"{self.path}: splits that were passed over: {listed}.",) if listed else ()
        return encoded_data(parts, self.config, report, notes)

    def _refuse_splits(self, used: Collection[str]) -> None:
        saved = self.splits["train"]
        refuse_split_column(
            [name for name in saved.features if may_hold_splits(name) and name not in used],
            lambda name: saved.batches(name, TEXT_ROWS),
            str(self.path),
            "Save a DatasetDict with its splits, or leave {} out (remove_columns).",
        )

    def image_column(self) -> str:
        """Return the name of the column of images."""
        name = self.config.files.image_column
        return self.splits["train"].column(name, "image_column", "image", "Image")

    def label_column(self) -> str:
        """Return the name of the column of labels."""
        name = self.config.files.label_column
        return self.splits["train"].column(name, "label_column", "label", "ClassLabel")

    def find_splits(self) -> dict[SplitName, Saved]:
        """Return the splits that were saved, each with its folder."""
        if (self.path / STATE_FILE).is_file():
            return {"train": Saved.open(self.path)}
        if not (self.path / SETS_FILE).is_file():
            raise UserError(f"data.path: {self.path}: not {WANTED}.")
        names = split_names(self.path / SETS_FILE)
        known = {name: OTHER_NAMES[name.lower()] for name in names if name.lower() in OTHER_NAMES}
        refuse_two_names(known, str(self.path))
        self.others = tuple(name for name in names if name.lower() not in OTHER_NAMES)
        if "train" not in known.values():
            raise UserError(
                f"data.path: {self.path}: no split named train (there are: {', '.join(names)})."
            )
        return {split: Saved.open(self.path / name) for name, split in known.items()}


def _part(saved: Saved, image: str, label: str) -> Part:
    columns = list(saved.batches(label, TEXT_ROWS))
    place = ImageLocations(saved.files, saved.num_rows(), image)
    where = replace(place, column=label)
    whole = pa.chunked_array(columns).combine_chunks() if columns else pa.array([], pa.int64())
    values = label_values(whole, where)
    if values.dtype != object and (values < 0).any():
        first = int(np.argmax(values < 0))
        raise UserError(
            f"{where(first)}: the label {values[first]}: images without a label cannot be learned "
            "from or tested on; save the split without them, or leave it out. data.unlabelled "
            "takes a saved split of images without labels, which the teacher teaches."
        )
    return Part(values, encoded_rows(saved, image, place), place, where, saved.names(label))


def encoded_rows(
    saved: Saved, name: str, place: ImageLocations
) -> Callable[[int], Iterator[Sequence[Encoded]]]:
    """Return the images of a column, in batches of the requested size.

    Args:
        saved: The split.
        name: Name of the column.
        place: Describes where an image is.
    """

    def batches(size: int) -> Iterator[Sequence[Encoded]]:
        start = 0
        for column in saved.batches(name, size):
            yield [
                _image(row, saved.folder, place, start + n)
                for n, row in enumerate(column.to_pylist())
            ]
            start += len(column)

    return batches


def _image(row: Any, folder: Path, place: ImageLocations, number: int) -> Encoded:
    """Return the bytes of an image, or its path if it has no bytes; None if there is no image.

    Raises:
        UserError: If the column holds something else.
    """
    if row is None or isinstance(row, bytes):
        return row
    if not isinstance(row, Mapping) or not row.keys() & {"bytes", "path"}:
        raise UserError(
            f"{place(number)}: data.files.image_column: of type {type(row).__name__}; allowed: "
            "bytes, or a struct of `bytes` and `path`."
        )
    content, path = row.get("bytes"), row.get("path")
    if isinstance(content, bytes):
        return content
    return outside_file(folder, path) if path else None
