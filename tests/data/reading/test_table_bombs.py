"""Tables of a few bytes that claim millions of rows, or unpack to gigabytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from readers import write_hf_disk, write_images

from krscale.config import DataConfig
from krscale.data.check import check_data
from krscale.data.reading import unpacking
from krscale.data.unlabelled_sources import open_unlabelled
from krscale.errors import UserError

ROWS = 2**20
CELL = 2**20
"""Bytes; the bounds are lowered to match."""


@pytest.fixture(autouse=True)
def _lower_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "_SMALL", 2**20)
    monkeypatch.setattr(unpacking, "_MANY_ROWS", 2**14)


RUN = pa.RunEndEncodedArray.from_arrays


def alike(value: object, rows: int = ROWS) -> pa.Array:
    """Return an array that repeats one value, at one byte a row in memory."""
    indices = pa.array(memoryview(bytes(rows)), pa.int8())
    return pa.DictionaryArray.from_arrays(indices, pa.array([value]))


def write_stream(folder: Path, table: pa.Table, compression: str | None = None) -> None:
    write_hf_disk(folder)
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with (
        pa.OSFile(str(folder / "data.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema, options=options) as writer,
    ):
        writer.write_table(table)


def many_rows(folder: Path) -> None:
    table = pa.table({"image": alike(b"PNG"), "label": alike(1)})
    pq.write_table(table, folder / "train.parquet")


def large_cells(folder: Path) -> None:
    image = pa.array([bytes(CELL)] * 3)
    table = pa.table({"image": image, "label": [0, 1, 2]})
    pq.write_table(table, folder / "train.parquet", compression="zstd", use_dictionary=False)


def many_paths(folder: Path) -> None:
    write_images(folder)
    table = pa.table({"path": alike("class-0/0.png"), "label": alike("a")})
    pq.write_table(table, folder / "list.parquet")


def compressed(folder: Path) -> None:
    image = pa.array([bytes(CELL)] * 2)
    write_stream(folder, pa.table({"image": image, "label": [0, 1]}), "zstd")


def compressed_dictionary(folder: Path) -> None:
    label = pa.DictionaryArray.from_arrays(pa.array([0, 0]), pa.array(["a" * CELL]))
    write_stream(folder, pa.table({"image": [b"", b""], "label": label}), "lz4")


def rows_of_nothing(folder: Path) -> None:
    write_stream(folder, pa.table({"image": pa.nulls(ROWS), "label": pa.nulls(ROWS)}))


def one_run(folder: Path) -> None:
    label = RUN(pa.array([ROWS], pa.int64()), pa.array([1]))
    write_stream(folder, pa.table({"image": pa.nulls(ROWS), "label": label}))


BOMBS: dict[str, tuple[Callable[[Path], None], str, str, str]] = {
    "rows": (many_rows, "parquet", "", "1,048,576 rows in"),
    "cells": (large_cells, "parquet", "", "bytes that unpack to 3,145,"),
    "paths": (many_paths, "image_list", "list.parquet", "1,048,576 rows in"),
    "compressed": (compressed, "hf_disk", "", "its batches are compressed"),
    "dictionary": (compressed_dictionary, "hf_disk", "", "its batches are compressed"),
    "nothing": (rows_of_nothing, "hf_disk", "", "rows in"),
    "run": (one_run, "hf_disk", "", "rows in"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_they_are_unpacked(name: str, tmp_path: Path) -> None:
    write, source, file, said = BOMBS[name]
    write(tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.*"))
    assert size < 2**18
    with pytest.raises(UserError, match=said):
        check_data(DataConfig(source=source, path=str(tmp_path / file)))


def test_images_without_labels_are_bounded_as_well(tmp_path: Path) -> None:
    many_rows(tmp_path)
    config = DataConfig(unlabelled=str(tmp_path))
    with pytest.raises(UserError, match="1,048,576 rows in"):
        open_unlabelled(config, 3).read(lambda done, total: None)


@pytest.mark.parametrize("kind", ["parquet", "hf_disk"])
def test_names_of_columns_that_are_no_text(kind: str, tmp_path: Path) -> None:
    table = pa.table({"image": [{"bytes": b"a", "names": b""}], "label": [0], "other": [1]})
    if kind == "parquet":
        pq.write_table(table, tmp_path / "train.parquet")
        file = tmp_path / "train.parquet"
    else:
        write_stream(tmp_path, table)
        file = tmp_path / "data.arrow"
    for name in (b"other", b"names"):
        content = file.read_bytes()
        file.write_bytes(content.replace(name, b"\xed\xa0\x80\xffx"))
        with pytest.raises(UserError):
            check_data(DataConfig(source=kind, path=str(tmp_path)))
        file.write_bytes(content)


def test_a_file_name_that_is_no_text(tmp_path: Path) -> None:
    write_hf_disk(tmp_path)
    state = json.loads((tmp_path / "state.json").read_text())
    for name in ("\ud800", "a\0b", "a" * 300):
        state["_data_files"] = [{"filename": name}]
        (tmp_path / "state.json").write_text(json.dumps(state))
        with pytest.raises(UserError) as refused:
            check_data(DataConfig(source="hf_disk", path=str(tmp_path)))
        assert str(refused.value).encode()
