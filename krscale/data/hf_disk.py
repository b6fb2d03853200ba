"""The source `hf_disk`: what `save_to_disk` of Hugging Face's datasets has left, read as Arrow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from krscale.config import DataConfig
from krscale.data.decoding import Encoded
from krscale.data.encoded import Part, encoded_data
from krscale.data.label_column import label_values
from krscale.data.own_files import OTHER_NAMES, ImageLocations, existing_path, files_identity
from krscale.data.own_files import own_splits as own
from krscale.data.source import Description, Report, SourceData, SplitName
from krscale.errors import UserError, unknown_name

_INFO, STATE_FILE, SETS_FILE = "dataset_info.json", "state.json", "dataset_dict.json"
WANTED = "a folder that save_to_disk has written (with state.json, or with dataset_dict.json)"


@dataclass(frozen=True)
class Saved:
    """One split on disk.

    Attributes:
        folder: Its folder.
        files: Its Arrow files, in order.
        features: Name of every column and what it holds.
    """

    folder: Path
    files: tuple[Path, ...]
    features: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Saved:
        """Read what is written about a split.

        Raises:
            UserError: If it is not what `save_to_disk` writes.
        """
        state, info = read_json_of(folder / STATE_FILE), read_json_of(folder / _INFO)
        try:
            files = tuple(folder / file["filename"] for file in state["_data_files"])
            features = dict(info["features"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{folder}: not {WANTED}: {error} is missing.") from None
        if state.get("_indices_files"):
            raise UserError(
                f"{folder / STATE_FILE}: the rows are picked from others (_indices_files); save it "
                "again after flatten_indices()."
            )
        return cls(folder, files, features)

    def column(self, name: str, field: str, default: str, kind: str) -> str:
        """Return the name of a column: as set, or the only one of its kind.

        Args:
            name: What the setting says.
            field: The setting, for errors.
            default: What it says where nothing was set.
            kind: The feature, e.g. `"Image"`.
        """
        if name in self.features:
            return name
        same = [
            n for n, f in self.features.items() if isinstance(f, dict) and f.get("_type") == kind
        ]
        if name == default and len(same) == 1:
            return same[0]
        raise unknown_name("column", name, self.features, f"{self.folder}: data.files.{field}")

    def num_rows(self) -> list[int]:
        """Return the number of rows of each file."""
        return [sum(len(batch) for batch in _open(file)) for file in self.files]

    def batches(self, name: str, size: int) -> Iterator[Any]:
        """Yield a column, so many rows at a time."""
        for file in self.files:
            for batch in _open(file):
                column = batch.column(batch.schema.names.index(name))
                for start in range(0, len(column), size):
                    yield column.slice(start, size)


class HfDisk:
    """A dataset, or a dictionary of datasets by split, that was saved to disk."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self.path = existing_path(config, WANTED)
        self.notes: tuple[str, ...] = ()
        self.splits = self.find_splits()

    @property
    def own_splits(self) -> tuple[SplitName, ...]:
        """Return the splits that were saved."""
        return own(self.splits)

    def identity(self) -> Mapping[str, Any]:
        """Return settings, and name, size and time of every file."""
        files = [str(file) for saved in self.splits.values() for file in saved.files]
        files += [str(saved.folder / _INFO) for saved in self.splits.values()]
        return files_identity(self.config, self.path, files)

    def describe(self) -> Description | None:
        """Return None: `read` decodes one image only."""
        return None

    def read(self, report: Report) -> SourceData:
        """Return the labels, and streams that decode the images."""
        files, train = self.config.files, self.splits["train"]
        label = train.column(files.label_column, "label_column", "label", "ClassLabel")
        image = train.column(files.image_column, "image_column", "image", "Image")
        feature = train.features[label]
        names = feature.get("names") if isinstance(feature, dict) else None
        parts = {split: _part(saved, image, label) for split, saved in self.splits.items()}
        return encoded_data(parts, self.config, report, self.notes, names or ())

    def find_splits(self) -> dict[SplitName, Saved]:
        """Return the splits that were saved, each with its folder."""
        if (self.path / STATE_FILE).is_file():
            return {"train": Saved.open(self.path)}
        if not (self.path / SETS_FILE).is_file():
            raise UserError(f"data.path: {self.path}: not {WANTED}.")
        names = read_json_of(self.path / SETS_FILE).get("splits", [])
        known = {OTHER_NAMES[n.lower()]: self.path / n for n in names if n.lower() in OTHER_NAMES}
        other = [name for name in names if name.lower() not in OTHER_NAMES]
        if other:
            self.notes = (f"{self.path}: splits that were passed over: {', '.join(other)}.",)
        if "train" not in known:
            raise UserError(
                f"data.path: {self.path}: no split named train (there are: {', '.join(names)})."
            )
        return {split: Saved.open(folder) for split, folder in known.items()}


def _part(saved: Saved, image: str, label: str) -> Part:
    columns = [
        batch.column(batch.schema.names.index(label)) for f in saved.files for batch in _open(f)
    ]
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
    return Part(values, encoded_rows(saved, image, place), place, where)


def encoded_rows(
    saved: Saved, name: str, place: ImageLocations
) -> Callable[[int], Iterator[Sequence[Encoded]]]:
    """Return the images of a column, so many at a time.

    Args:
        saved: The split.
        name: Of the column.
        place: Words where an image is.
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
    """Return the bytes of an image, or the path that stands for them."""
    if isinstance(row, bytes):
        return row
    if isinstance(row, Mapping) and isinstance(row.get("bytes"), bytes):
        content: bytes = row["bytes"]
        return content
    if isinstance(row, Mapping) and row.get("path"):
        return str(folder / str(row["path"]))
    raise UserError(f"{place(number)}: no image (got {type(row).__name__}).")


def _open(file: Path) -> Iterator[Any]:
    """Yield the record batches of a file, which is mapped, and in Arrow's stream format."""
    try:
        with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as reader:
            yield from reader
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: not a readable Arrow file ({error}).") from None


def read_json_of(path: Path) -> Any:
    """Return what a JSON file of a saved set holds."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected {WANTED}.") from None
