"""Class names that files give to label numbers: one rule for every source that has such names."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from krscale.config import DataConfig, FilesConfig
from krscale.data import Dataset, prepare_data
from krscale.data.arrow import Split
from krscale.data.reading.classes import find_classes
from krscale.data.source import SourceData
from krscale.data.splits.splitting import check_source
from krscale.errors import UserError

NUM = 36
NAMES = ("ant", "bee", "cat")
Write = Callable[[Path, np.ndarray, tuple[str, ...]], DataConfig]


def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (NUM, 3, 6, 5), dtype=np.uint8)


def encoded() -> list[bytes]:
    found = []
    for pixels in images():
        buffer = io.BytesIO()
        Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


def numpy(path: Path, labels: np.ndarray, names: tuple[str, ...]) -> DataConfig:
    np.savez(path / "a.npz", images=images(), labels=labels, classes=np.array(names))
    return DataConfig(source="numpy", path=str(path / "a.npz"))


def parquet(path: Path, labels: np.ndarray, names: tuple[str, ...]) -> DataConfig:
    table = pa.table({"image": encoded(), "label": labels})
    info = json.dumps({"info": {"features": {"label": {"names": names}}}})
    pq.write_table(table.replace_schema_metadata({"huggingface": info}), path / "a.parquet")
    return DataConfig(source="parquet", path=str(path / "a.parquet"))


def hf_disk(path: Path, labels: np.ndarray, names: tuple[str, ...]) -> DataConfig:
    table = pa.table({"image": encoded(), "label": labels})
    file = str(path / "data.arrow")
    with pa.OSFile(file, "wb") as opened, pa.ipc.new_stream(opened, table.schema) as writer:
        writer.write_table(table)
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    (path / "dataset_info.json").write_text(json.dumps({"features": features}))
    return DataConfig(source="hf_disk", path=str(path))


def prepare(config: DataConfig, path: Path, classes: tuple[str, ...] = (), **data) -> Dataset:
    files = FilesConfig(classes=classes)
    return prepare_data(config.model_copy(update={"files": files, **data}), path / "cache")


@pytest.mark.parametrize("write", [numpy, parquet, hf_disk])
class TestEverySource:
    def test_names_of_all_numbers(self, tmp_path: Path, write: Write) -> None:
        config = write(tmp_path, np.arange(NUM) % 3, NAMES)
        assert prepare(config, tmp_path).classes == NAMES
        assert prepare(config, tmp_path, ("x", "y", "z")).classes == ("x", "y", "z")

    @pytest.mark.parametrize("absent", [1, 2])
    def test_a_name_without_an_image(self, tmp_path: Path, write: Write, absent: int) -> None:
        there = [number for number in range(3) if number != absent]
        config = write(tmp_path, np.array(there)[np.arange(NUM) % 2], NAMES)
        message = rf"1 of 3 classes have no training image: {NAMES[absent]}\. data\.map_labels"
        with pytest.raises(UserError, match=message):
            prepare(config, tmp_path)
        found = prepare(config, tmp_path, map_labels=True)
        assert found.classes == tuple(NAMES[number] for number in there)

    @pytest.mark.parametrize("mapped", [False, True])
    def test_a_number_without_a_name(self, tmp_path: Path, write: Write, mapped: bool) -> None:
        config = write(tmp_path, np.arange(NUM) % 3, NAMES[:2])
        with pytest.raises(UserError, match=r"the label 2 has no name: .* names ant, bee \(num"):
            prepare(config, tmp_path, map_labels=mapped)
        assert prepare(config, tmp_path, ("x", "y", "z")).classes == ("x", "y", "z")


def test_text_keeps_the_order_of_the_names() -> None:
    values = np.array(["cat", "ant", "cat"], dtype=object)
    config = DataConfig(source="numpy", path="a.npz")
    assert find_classes(config, ("cat", "ant"), values, str) == ("cat", "ant")
    with pytest.raises(UserError, match="1 of 3 classes have no training image: bee"):
        find_classes(config, NAMES, values, str)
    mapped = config.model_copy(update={"map_labels": True})
    assert find_classes(mapped, ("cat", "bee", "ant"), values, str) == ("cat", "ant")
    assert find_classes(config, (), values, str) == ("ant", "cat")


def test_names_that_come_with_the_files_and_are_no_text() -> None:
    train = Split(images(), np.arange(NUM) % 3)
    data = SourceData(("ant", "\ud800", "cat"), {"train": train})
    with pytest.raises(UserError, match=r"names of classes that are not UTF-8: '\\ud800'"):
        check_source("hf_disk", data)
