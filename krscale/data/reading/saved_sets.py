"""One split written by `save_to_disk` of Hugging Face's datasets: its files and their rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from krscale.data.reading.arrow_messages import decode_names, refuse_compressed
from krscale.data.reading.own_files import column_number
from krscale.data.reading.unpacking import refuse_rows
from krscale.errors import UserError, first_line, unknown_name
from krscale.foreign import parsing, path_problem, read_bounded, regular

INFO_FILE, STATE_FILE, SETS_FILE = "dataset_info.json", "state.json", "dataset_dict.json"
TEXT_ROWS = 65_536
_MOST_JSON = 256 * 1024**2
WANTED = "a folder that save_to_disk has written (with state.json, or with dataset_dict.json)"


@dataclass(frozen=True)
class Saved:
    """One split on disk.

    Attributes:
        folder: Its folder.
        files: Its Arrow files, in order.
        features: Feature description of every column, by name.
    """

    folder: Path
    files: tuple[Path, ...]
    features: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Saved:
        """Read the files that describe a split.

        Raises:
            UserError: If it is not what `save_to_disk` writes.
        """
        state, info = _read(folder / STATE_FILE), _read(folder / INFO_FILE)
        try:
            names = [str(file["filename"]) for file in state["_data_files"]]
            files = tuple(folder / name for name in names)
            features = dict(info["features"].items())
        except KeyError as error:
            raise UserError(f"{folder}: not {WANTED}: {error} is missing.") from None
        except (TypeError, AttributeError):
            raise UserError(
                f"{folder}: not {WANTED}: {STATE_FILE} lists no files (_data_files), or "
                f"{INFO_FILE} no columns (features)."
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
            name: Value of the setting.
            field: Name of the setting, for error messages.
            default: Default value of the setting.
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
        """Return the names of a column's numbers from 0; empty if they have none.

        Raises:
            UserError: If the names are not a list of text.
        """
        feature = self.features.get(column)
        names = (feature.get("names") if isinstance(feature, dict) else None) or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            where = self.folder / INFO_FILE
            raise UserError(f"{where}: the names of {column!r} are no list of text.")
        return tuple(names)

    def num_rows(self) -> list[int]:
        """Return the number of rows of each file."""
        return [sum(len(batch) for batch in _open(file)) for file in self.files]

    def batches(self, name: str, size: int) -> Iterator[Any]:
        """Yield a column, at most `size` rows at a time."""
        for file in self.files:
            for batch in _open(file):
                column = _column(batch, name, file)
                for start in range(0, len(column), size):
                    yield column.slice(start, size)

    def outside(self, name: str) -> Iterator[str]:
        """Yield the files of images that a column refers to by path only."""
        for column in self.batches(name, TEXT_ROWS):
            kind = column.type
            if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
                continue
            fields = dict(zip((field.name for field in kind), column.flatten(), strict=True))
            paths = fields["path"]
            if "bytes" in fields:
                paths = paths.filter(fields["bytes"].is_null())
            yield from (outside_file(self.folder, path) for path in paths.to_pylist() if path)


def _column(batch: Any, name: str, file: Path) -> Any:
    column = batch.column(column_number(batch.schema.names, name, str(file)))
    try:
        column.validate(full=True)  # Arrow takes the offsets of values from the file unchecked
    except pa.ArrowException as error:
        raise UserError(f"{file}: column {name}: damaged ({first_line(error)}).") from None
    return column


def outside_file(folder: Path, path: object) -> str:
    """Return the path of an image that a row names, relative to the folder of the split."""
    return str(folder / str(path))


def _open(file: Path) -> Iterator[Any]:
    """Yield the record batches of a memory-mapped file in Arrow's stream format."""
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
