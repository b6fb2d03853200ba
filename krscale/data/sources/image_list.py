"""The source `image_list`: a CSV or Parquet file that lists image files and their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from krscale.config import DataConfig
from krscale.data.reading.encoded import Part, encoded_data, of_files
from krscale.data.reading.hidden_splits import refuse_split_column
from krscale.data.reading.label_column import label_values
from krscale.data.reading.own_files import (
    OTHER_NAMES,
    column_number,
    existing_path,
    files_identity,
    own_splits,
)
from krscale.data.reading.text_tables import read_text, refuse_line_breaks
from krscale.data.source import Description, Report, SourceData, SplitName
from krscale.data.sources.image_folder import Names
from krscale.data.sources.parquet import refuse_large_table
from krscale.errors import UserError, unknown_name
from krscale.files import sha256
from krscale.foreign import is_file, parsing, path_problem

WANTED = "a .csv or .parquet file with a column of paths and one of labels"
_MAX_BYTES = 4 * 2**30  # enough for a hundred million paths; the list is read into memory


class ImageList:
    """Image files named in a table: path, label and, where there is one, split.

    Paths are relative to the folder of the list, or absolute.
    """

    def __init__(self, config: DataConfig) -> None:
        self.config, self.settings = config, config.files
        self.path = existing_path(config, WANTED)
        if not self.path.is_file():
            raise UserError(f"data.path: {self.path}: not a file; expected {WANTED}.")
        if (size := self.path.stat().st_size) > _MAX_BYTES:
            raise UserError(
                f"data.path: {self.path}: {size:,} bytes; a list of paths and labels has at most "
                f"{_MAX_BYTES:,}. A table that holds the images is the source 'parquet'."
            )

    @property
    def own_splits(self) -> tuple[SplitName, ...]:
        """Return the splits that the list names."""
        return own_splits(self.rows)

    @cached_property
    def rows(self) -> Mapping[SplitName, Sequence[int]]:
        """Return the rows of every split."""
        names = self.table.column_names
        column = self.settings.split_column or ("split" if "split" in names else "")
        if not column:
            self._refuse_splits(names)
            return {"train": range(len(self.table))}
        found: dict[SplitName, list[int]] = {}
        for row, name in enumerate(self._column(column, "split_column").to_pylist()):
            split = OTHER_NAMES.get(str(name).lower())
            if split is None:
                raise unknown_name("split", str(name), OTHER_NAMES, self._place(column)(row))
            found.setdefault(split, []).append(row)
        if "train" not in found:
            raise UserError(f"{self.path}: column {column!r}: no row of the split train.")
        return {name: found[name] for name in sorted(found, key=("train", "val", "test").index)}

    def _refuse_splits(self, names: Sequence[str]) -> None:
        used = {self.settings.path_column, self.settings.label_column}
        refuse_split_column(
            [name for name in names if name not in used and names.count(name) == 1],
            lambda name: self.table[name].chunks,
            str(self.path),
            "Set data.files.split_column = {} and write train, val and test there, or leave the "
            "column out of the list.",
        )

    @cached_property
    def table(self) -> Any:
        """Return the list; columns of a CSV file are text, except columns of whole numbers."""
        with parsing(f"{self.path}: not a readable list"):
            if self.path.suffix.lower() == ".parquet":
                refuse_large_table(self.path, pq.read_metadata(self.path))
                return _checked(pq.read_table(self.path))
            text = read_text(self.path)
        # `01` is a name, and so is `NA`: only columns of plain whole numbers are numbers.
        label, classes = self.settings.label_column, self.settings.classes
        floats = not any(name.endswith(".0") for name in classes)  # otherwise such labels are names
        columns = [
            _numbers(column, floats=floats and name == label)
            for name, column in zip(text.column_names, text.columns, strict=True)
        ]
        return pa.table(columns, names=text.column_names)

    @cached_property
    def files(self) -> list[str | None]:
        """Return the path of every row, None if it has none."""
        name, root = self.settings.path_column, self.path.parent
        paths = self._column(name, "path_column").to_pylist()
        for row, path in enumerate(paths):
            if path is not None and not isinstance(path, str):
                raise UserError(f"{self._place(name)(row)}: no path (got {path!r}).")
        return [_file(root, path) if path else None for path in paths]

    def identity(self) -> Mapping[str, Any]:
        """Return settings, hash of the list, and name, size and time of every existing file."""
        content = sha256(self.path)
        there = (file for file in sorted(set(filter(None, self.files))) if is_file(file))
        return {"list": content, **files_identity(self.config, self.path.parent, there)}

    def describe(self) -> Description | None:
        """Return None: `read` decodes one image only."""
        return None

    def read(self, report: Report) -> SourceData:
        """Return the labels, and streams that decode the images."""
        name = self.settings.label_column
        column = self._column(name, "label_column")
        values = label_values(column.combine_chunks(), self._place(name))
        if self.path.suffix.lower() != ".parquet":
            refuse_line_breaks(values, self._place(name))
        parts = {
            split: Part(
                values[np.asarray(rows, np.int64)],
                of_files([self.files[row] for row in rows]),
                Names([self.place(row) for row in rows]),
                _Rows(self.path, name, rows),
            )
            for split, rows in self.rows.items()
        }
        return encoded_data(parts, self.config, report)

    def place(self, row: int) -> str:
        """Describe where the image of a row is: its path, or the row if it has none."""
        return self.files[row] or self._place(self.settings.path_column)(row)

    def _column(self, name: str, field: str) -> Any:
        where, names = f"{self.path}: data.files.{field}", self.table.column_names
        if len(names) == 1 and (other := next((c for c in ";|\t," if c in names[0]), "")):
            raise UserError(
                f"{self.path}: its columns are separated by {other!r}; a .csv has commas, a .tsv "
                "tabs."
            )
        return self.table.column(column_number(names, name, where))

    def _place(self, column: str) -> _Rows:
        return _Rows(self.path, column, range(len(self.table)))


def _file(root: Path, path: str) -> str:
    """Return the path of a row's image; an impossible path is reported when it is read."""
    return str(root / path) if path_problem(path) else str(root / Path(path).expanduser())


class _Rows:
    """Describes where a value of the list is: rows are counted from 1, below the header."""

    def __init__(self, path: Path, column: str, rows: Sequence[int]) -> None:
        self.path, self.column, self.rows = path, column, rows

    def __call__(self, number: int) -> str:
        return f"{self.path}: column {self.column!r}: row {self.rows[number] + 1}"


def _checked(table: Any) -> Any:
    """Return a table after validating its values; invalid text is refused.

    Arrow takes the offsets of values, and their text, from the file unchecked.
    """
    table.validate(full=True)
    return table


def _numbers(column: Any, *, floats: bool) -> Any:
    """Return a column of text as whole numbers if it holds nothing else.

    Args:
        column: A column of text.
        floats: Whether `1.0` is a whole number, too: pandas writes whole numbers this way if the
            column once had gaps, and the reader of Parquet labels accepts them.
    """
    plain = r"(0|-?[1-9][0-9]{0,17})"
    if floats and _all_match(column, rf"^{plain}\.0+$"):
        column = pc.replace_substring_regex(column, r"\.0+$", "")
    return pc.cast(column, pa.int64()) if _all_match(column, f"^{plain}$") else column


def _all_match(column: Any, pattern: str) -> bool:
    return bool(len(column) and pc.all(pc.match_substring_regex(column, pattern)).as_py())
