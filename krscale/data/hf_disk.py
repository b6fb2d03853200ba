"""The source `hf_disk`: what `save_to_disk` of Hugging Face's datasets has left, read as Arrow."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from krscale.config import DataConfig
from krscale.data.arrow_messages import decode_names, refuse_compressed
from krscale.data.decoding import Encoded
from krscale.data.encoded import Part, encoded_data
from krscale.data.hidden_splits import SUSPECTED, refuse_split_column
from krscale.data.label_column import label_values
from krscale.data.own_files import (
    OTHER_NAMES,
    ImageLocations,
    column_number,
    existing_path,
    files_identity,
    refuse_two_names,
)
from krscale.data.own_files import own_splits as own
from krscale.data.source import Description, Report, SourceData, SplitName
from krscale.data.unpacking import refuse_rows
from krscale.errors import UserError, unknown_name
from krscale.foreign import is_file, parsing, path_problem, read_bounded, regular

_INFO, STATE_FILE, SETS_FILE = "dataset_info.json", "state.json", "dataset_dict.json"
_PATH_ROWS = 65_536
_MOST_JSON = 256 * 1024**2
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
        state, info = _read(folder / STATE_FILE), _read(folder / _INFO)
        try:
            names = [str(file["filename"]) for file in state["_data_files"]]
            files = tuple(folder / name for name in names)
            features = dict(info["features"].items())
        except KeyError as error:
            raise UserError(f"{folder}: not {WANTED}: {error} is missing.") from None
        except (TypeError, AttributeError):
            raise UserError(
                f"{folder}: not {WANTED}: {STATE_FILE} lists no files (_data_files), or {_INFO} no "
                "columns (features)."
            ) from None
        outside = [n for n in names if not n or Path(n).name != n or path_problem(n)]
        if outside:
            raise UserError(
                f"{folder / STATE_FILE}: _data_files: {outside[0]!r} is not a file of this folder; "
                "save_to_disk writes names without folders."
            )
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

    def names(self, column: str) -> tuple[str, ...]:
        """Return what the numbers of a column are called, from 0; nothing where they are not.

        Raises:
            UserError: If that is no list of text.
        """
        feature = self.features.get(column)
        names = (feature.get("names") if isinstance(feature, dict) else None) or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{self.folder / _INFO}: the names of {column!r} are no list of text.")
        return tuple(names)

    def num_rows(self) -> list[int]:
        """Return the number of rows of each file."""
        return [sum(len(batch) for batch in _open(file)) for file in self.files]

    def batches(self, name: str, size: int) -> Iterator[Any]:
        """Yield a column, so many rows at a time."""
        for file in self.files:
            for batch in _open(file):
                column = _column(batch, name, file)
                for start in range(0, len(column), size):
                    yield column.slice(start, size)

    def outside(self, name: str) -> Iterator[str]:
        """Yield the files of images that a column has by their paths only."""
        for column in self.batches(name, _PATH_ROWS):
            kind = column.type
            if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
                continue
            fields = dict(zip((field.name for field in kind), column.flatten(), strict=True))
            paths = fields["path"]
            if "bytes" in fields:
                paths = paths.filter(fields["bytes"].is_null())
            yield from (_outside(self.folder, path) for path in paths.to_pylist() if path)


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
        """Return settings, and name, size and time of every file, of images outside, too."""
        files: list[str] = []
        image = self.image_column()
        for saved in self.splits.values():
            files += map(str, (*saved.files, saved.folder / _INFO, saved.folder / STATE_FILE))
            outside = dict.fromkeys(saved.outside(image))
            files += filter(is_file, outside)
        return files_identity(self.config, self.path, files) | self._names_of_splits()

    def _names_of_splits(self) -> dict[str, Any]:
        """Return what splits call their labels, where they differ.

        So that data sets from before labels were compared by name are found only where they do not.
        """
        if len(self.splits) == 1:  # of images without labels, perhaps
            return {}
        label = self.label_column()
        names = {split: saved.names(label) for split, saved in self.splits.items()}
        return {"names_of_splits": names} if len(set(names.values())) > 1 else {}

    def describe(self) -> Description | None:
        """Return None: `read` decodes one image only."""
        return None

    def read(self, report: Report) -> SourceData:
        """Return the labels, and streams that decode the images."""
        label, image = self.label_column(), self.image_column()
        if len(self.splits) == 1:
            self._refuse_splits({image, label})
        parts = {split: _part(saved, image, label) for split, saved in self.splits.items()}
        return encoded_data(parts, self.config, report, self.notes)

    def _refuse_splits(self, used: Collection[str]) -> None:
        saved = self.splits["train"]
        refuse_split_column(
            [name for name in saved.features if name.lower() in SUSPECTED and name not in used],
            lambda name: saved.batches(name, _PATH_ROWS),
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
        other = [name for name in names if name.lower() not in OTHER_NAMES]
        if other:
            self.notes = (f"{self.path}: splits that were passed over: {', '.join(other)}.",)
        if "train" not in known.values():
            raise UserError(
                f"data.path: {self.path}: no split named train (there are: {', '.join(names)})."
            )
        return {split: Saved.open(self.path / name) for name, split in known.items()}


def _part(saved: Saved, image: str, label: str) -> Part:
    columns = [_column(batch, label, file) for file in saved.files for batch in _open(file)]
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
    """Return the bytes of an image, or the path that stands for them; None where there is none.

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
    return _outside(folder, path) if path else None


def _column(batch: Any, name: str, file: Path) -> Any:
    column = batch.column(column_number(batch.schema.names, name, str(file)))
    try:
        column.validate(full=True)  # where a value begins is a number in the file, taken as it is
    except pa.ArrowException as error:
        raise UserError(f"{file}: column {name}: damaged ({_first_line(error)}).") from None
    return column


def _outside(folder: Path, path: object) -> str:
    """Return the file of an image that a row names; paths are of the folder of the split."""
    return str(folder / str(path))


def _open(file: Path) -> Iterator[Any]:
    """Yield the record batches of a file, which is mapped, and in Arrow's stream format."""
    problem, num_rows = f"{file}: not a readable Arrow file", 0
    with parsing(problem):
        source = pa.memory_map(str(regular(file)))
    with source:
        with parsing(problem):
            refuse_compressed(source, str(file))
            batches = iter(stream := pa.ipc.open_stream(source))
            decode_names(stream.schema)
        while True:
            with parsing(problem):
                batch = next(batches, None)
            if batch is None:
                return
            num_rows += len(batch)
            refuse_rows(str(file), source.size(), num_rows)
            yield batch


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def split_names(path: Path) -> list[str]:
    """Return the splits that a `dataset_dict.json` lists.

    Raises:
        UserError: If it lists none.
    """
    content = _read(path)
    names = content.get("splits") if isinstance(content, Mapping) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: it does not list splits; expected {WANTED}.")
    return names


def _read(path: Path) -> Any:
    with parsing(f"{path}: cannot be read", f"Expected {WANTED}."):
        return json.loads(read_bounded(path, _MOST_JSON))
