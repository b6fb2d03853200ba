"""The source `parquet`: a column of images, encoded or raw, and one of labels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from krscale.config import DataConfig
from krscale.data.arrow import Images, Labels
from krscale.data.reading.arrow_messages import decode_names
from krscale.data.reading.classes import Values, alike
from krscale.data.reading.decoding import Decoder, piece_size
from krscale.data.reading.hidden_splits import may_hold_splits, refuse_split_column
from krscale.data.reading.label_column import label_values
from krscale.data.reading.naming import Written, joined, read_labels
from krscale.data.reading.own_files import (
    ImageLocations,
    column_number,
    existing_path,
    files_identity,
    own_splits,
)
from krscale.data.reading.parquet_splits import WANTED, files_by_split, is_hidden
from krscale.data.reading.raw_pixels import checked_shape, raw_images, refuse_encoded
from krscale.data.reading.unpacking import refuse_bomb, refuse_rows
from krscale.data.reading.walking import Found, walk
from krscale.data.seen import Seen
from krscale.data.source import Description, Report, SourceData, SplitName
from krscale.data.stream import Stream, counted_streams
from krscale.errors import UserError
from krscale.foreign import parsing, regular

_LABEL_ROWS = 65_536


class Parquet:
    """Images in Parquet files.

    A folder may hold several. If the names of all files begin with a split (`train-00000.parquet`,
    or a folder `train`), they are those splits. Otherwise all are training images, from which the
    other splits are cut.
    """

    def __init__(self, config: DataConfig) -> None:
        self.config, self.settings = config, config.files
        self.path = existing_path(config, WANTED)
        self.seen = Found()
        if self.path.is_dir():
            self.seen = walk(self.path, frozenset((".parquet",)), is_hidden)
            self.seen.check(self.path, skip=config.skip_unreadable)
        self.files = self.find_splits(sorted(map(Path, self.seen.files)))

    @property
    def own_splits(self) -> tuple[SplitName, ...]:
        """Return the splits that have files of their own."""
        return own_splits(self.files)

    def find_splits(self, files: Sequence[Path]) -> dict[SplitName, list[Path]]:
        """Return the files of each split; `data.path` itself if it is a file."""
        return files_by_split(self.path, files)

    def identity(self) -> Mapping[str, Any]:
        """Return settings, and name, size and time of every file."""
        files = [file for found in self.files.values() for file in found]
        identity = files_identity(self.config, self.path, map(str, files))
        return identity | self._names_of_files(files)

    def _names_of_files(self, files: Sequence[Path]) -> dict[str, Any]:
        """Return the label names of each file, if they differ.

        Data built before labels were compared by name are thus reused only if the names do not
        differ.
        """
        if len(files) == 1:
            return {}
        names = [hugging_face_names(file, self.settings.label_column) for file in files]
        return {"names_of_files": names} if len(set(names)) > 1 else {}

    def describe(self) -> Description | None:
        """Return None: `read` decodes one image only."""
        return None

    def read(self, report: Report) -> SourceData:
        """Return the labels, and streams that decode the images."""
        found = {split: self._labels(files) for split, files in self.files.items()}
        if len(found) == 1:
            self._refuse_splits(self.files["train"])
        if not len(found["train"][0].values):
            raise UserError(f"{self.path}: there are no training images.")
        classes, labels = read_labels(
            {s: written for s, (written, _) in found.items()}, self.config
        )
        locations = {
            s: replace(p, column=self.settings.image_column) for s, (_, p) in found.items()
        }
        streams, seen = self.streams(labels, locations, report)
        notes = (*self.seen.notes(self.path), *alike(classes, str(self.path)))
        return SourceData(classes, streams, locations, notes, seen=seen)

    def streams(
        self,
        labels: Mapping[SplitName, Labels],
        locations: Mapping[SplitName, ImageLocations],
        report: Report,
    ) -> tuple[dict[SplitName, Stream], Seen | None]:
        """Return streams that read the images, and the record they fill if they decode."""
        decoder = Decoder(self.settings, self.config.background)
        shape = self._shape(locations["train"], decoder)
        starts = {
            split: partial(self._pieces, where, shape, decoder, split)
            for split, where in locations.items()
        }
        streams = counted_streams(labels, shape, starts, report)
        return streams, None if self.settings.raw_shape else decoder.seen

    def _labels(self, files: Sequence[Path]) -> tuple[Written, ImageLocations]:
        """Return the labels of all rows as they are stored, and the locations of the rows."""
        name = self.settings.label_column
        parts: list[Written] = []
        for file in files:
            start, columns = 0, []
            for column in _batches(file, name, "label_column", _LABEL_ROWS):
                columns.append(
                    label_values(column, ImageLocations([file], [len(column)], name, start))
                )
                start += len(column)
            values: Values = np.concatenate(columns) if columns else np.empty(0, np.int64)
            names = () if values.dtype == object else hugging_face_names(file, name)
            parts.append(Written(values, ImageLocations([file], [len(values)], name), names))
        where = ImageLocations(files, [len(part.values) for part in parts], name)
        filled = [part for part in parts if len(part.values)]
        if len({part.is_text for part in filled}) > 1:
            raise UserError(f"{self.path}: column {name!r} holds numbers in some files only.")
        return joined(filled or parts, where), where

    def _refuse_splits(self, files: Sequence[Path]) -> None:
        with parsing(f"{files[0]}: not a readable Parquet file"):
            names = pq.read_schema(regular(files[0])).names
        used = {self.settings.image_column, self.settings.label_column}
        refuse_split_column(
            [name for name in names if may_hold_splits(name) and name not in used],
            lambda name: (b for file in files for b in _batches(file, name, name, _LABEL_ROWS)),
            str(self.path),
            "Write a file of each split, e.g. train.parquet and test.parquet, or leave {} out.",
        )

    def _shape(self, locations: ImageLocations, decoder: Decoder) -> tuple[int, ...]:
        """Return `(C, H, W)`: the one that is set, or that of the first image."""
        column = self._first_column(locations)
        if self.settings.raw_shape:
            refuse_encoded(column, locations(0))
        if not pa.types.is_fixed_size_binary(column.type):
            return decoder.first_shape(self._each_encoded(locations), locations)
        return checked_shape(self.settings, column.type.byte_width)

    def _first_column(self, locations: ImageLocations) -> Any:
        for file, num_rows in zip(locations.files, locations.num_rows, strict=True):
            if num_rows:
                self._refuse_list(file)
                name = self.settings.image_column
                return next(_batches(file, name, "image_column", 1))
        raise AssertionError("called with rows only")

    def _refuse_list(self, file: Path) -> None:
        with parsing(f"{file}: not a readable Parquet file"):
            names = pq.read_schema(regular(file)).names
        image, path = self.settings.image_column, self.settings.path_column
        if image not in names and path in names:
            raise UserError(
                f"{file}: data.files.image_column: no column {image!r} of images, but one of paths "
                f"({path!r}): the source 'image_list' reads lists (data.source = 'image_list')."
            )

    def _pieces(
        self, locations: ImageLocations, shape: tuple[int, ...], decoder: Decoder, split: SplitName
    ) -> Iterator[Images]:
        columns = self._columns(locations, piece_size(shape))
        if self.settings.raw_shape:
            start = 0
            for column in columns:
                yield raw_images(column, shape, locations, start)
                start += len(column)
            return

        def batches() -> Iterator[list[bytes | None]]:
            start = 0
            for column in columns:
                yield _encoded(column, locations, start)
                start += len(column)

        yield from decoder.pieces(batches(), shape, locations, split)

    def _each_encoded(self, locations: ImageLocations) -> Iterator[bytes | None]:
        start = 0
        for column in self._columns(locations, 1):
            yield from _encoded(column, locations, start)
            start += len(column)

    def _columns(self, locations: ImageLocations, size: int) -> Iterator[Any]:
        for file in locations.files:
            yield from _batches(file, self.settings.image_column, "image_column", size)


def hugging_face_names(file: Path, column: str) -> tuple[str, ...]:
    """Return the class names that Hugging Face's datasets wrote into a file; empty if none."""
    with suppress(UserError), parsing("no names"):  # reading the rows reports what is wrong
        content = json.loads((pq.read_schema(regular(file)).metadata or {})[b"huggingface"])
        names = content["info"]["features"][column]["names"]
        if isinstance(names, Mapping):  # keyed by number, as in data set cards
            names = [names[str(number)] for number in range(len(names))]
        return tuple(map(str, names))
    return ()


def refuse_large_table(file: Path, metadata: Any) -> None:
    """Refuse a Parquet file that unpacks to far more than its size, or has too many rows for it.

    Args:
        file: The file.
        metadata: Its `pyarrow.parquet.FileMetaData`.

    Raises:
        UserError: If the file is refused.
    """
    size = file.stat().st_size
    refuse_rows(str(file), size, metadata.num_rows)
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    refuse_bomb(str(file), size, sum(group.total_byte_size for group in groups))


def _batches(file: Path, name: str, field: str, size: int) -> Iterator[Any]:
    """Yield a column of a file, `size` rows at a time.

    Raises:
        UserError: If the file cannot be read, or has no such column.
    """
    problem = f"{file}: not a readable Parquet file"
    with parsing(problem):
        # Memory-mapped without read-ahead: a row group may be larger than the memory.
        parquet = pq.ParquetFile(regular(file), memory_map=True, pre_buffer=False)
    with parquet:
        with parsing(problem):
            refuse_large_table(file, parquet.metadata)
            decode_names(parquet.schema_arrow)
            column_number(parquet.schema_arrow.names, name, f"{file}: data.files.{field}")
            batches = parquet.iter_batches(size, columns=[name], use_threads=False)
        while True:
            with parsing(problem):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch.column(0)


def _encoded(column: Any, locations: ImageLocations, start: int) -> list[bytes | None]:
    """Return the bytes of every image of a column, None for rows without an image.

    Raises:
        UserError: If the column holds something else.
    """
    kind = column.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        column = column.flatten()[kind.get_field_index("bytes")]
        kind = column.type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UserError(
            f"{locations(start)}: data.files.image_column: of type {kind}; allowed: binary (PNG, "
            "JPEG, ...), a struct with binary `bytes`, or fixed-size binary (raw pixels)."
        )
    images: list[bytes | None] = column.to_pylist()
    return images
