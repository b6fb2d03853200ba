"""Labels that are numbers with gaps, and dry runs that read the files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from krscale.config import DataConfig, Experiment, FilesConfig, with_values
from krscale.data import prepare_data
from krscale.errors import UserError
from krscale.setup.plan import describe


def make_images(num_images: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_images, 3, 6, 5), dtype=np.uint8)


def encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, images: list[bytes], labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": images, "label": labels}), path)


def gappy(path: Path, values: tuple[int, ...] = (0, 1, 3), split: str = "") -> DataConfig:
    images = make_images(48, seed=len(split))
    labels = np.array(values)[np.arange(48) % len(values)]
    write(path / f"{split}data.parquet" if split else path, [encode(i) for i in images], labels)
    return DataConfig(source="parquet", path=str(path))


def mapped(config: DataConfig, *classes: str) -> DataConfig:
    files = FilesConfig(classes=classes)
    return config.model_copy(update={"map_labels": True, "files": files})


def test_a_gap_is_named_with_the_way_on(tmp_path):
    with pytest.raises(UserError) as caught:
        prepare_data(gappy(tmp_path / "a.parquet"), tmp_path / "cache")
    text = str(caught.value)
    assert "labels are numbers up to 3, but no training image has 2" in text
    assert "data.map_labels = true makes classes of the numbers that there are (0, 1, 3)" in text


def test_gaps_are_mapped(tmp_path):
    config = gappy(tmp_path / "a.parquet", (0, 3, 10))
    found = prepare_data(mapped(config), tmp_path / "cache")
    assert found.classes == ("0", "3", "10"), "in the order of the numbers, not of their names"
    assert sorted(np.unique(found.split("train").labels)) == [0, 1, 2]
    by_pixels = {
        image.tobytes(): found.classes[label]
        for name in ("train", "val", "test")
        for image, label in zip(found.split(name).images, found.split(name).labels, strict=True)
    }
    for number, image in enumerate(make_images(48)):
        assert by_pixels[image.tobytes()] == str((0, 3, 10)[number % 3])
    named = prepare_data(mapped(config, "ant", "bee", "cat"), tmp_path / "cache")
    assert named.classes == ("ant", "bee", "cat")
    with pytest.raises(UserError, match="2 names for the 3 labels that there are: 0, 3, 10"):
        prepare_data(mapped(config, "ant", "bee"), tmp_path / "cache")


def test_without_a_gap_nothing_changes(tmp_path):
    config = gappy(tmp_path / "a.parquet", (0, 1, 2))
    plain = prepare_data(config, tmp_path / "cache")
    assert prepare_data(mapped(config), tmp_path / "cache").fingerprint == plain.fingerprint


def test_a_label_that_no_training_image_has_is_refused(tmp_path):
    config = gappy(tmp_path / "d", (0, 1, 3), "train-")
    gappy(tmp_path / "d", (0, 2, 3), "test-")
    with pytest.raises(UserError, match=r"test-data\.parquet.*the label 2"):
        prepare_data(mapped(config), tmp_path / "cache")


def test_negative_numbers_are_no_classes(tmp_path):
    config = gappy(tmp_path / "a.parquet", (-1, 0, 1))
    for wanted in (config, mapped(config)):
        with pytest.raises(UserError, match="-1"):
            prepare_data(wanted, tmp_path / "cache")


def test_a_dry_run_looks_at_all_files(tmp_path):
    config = gappy(tmp_path / "a.parquet", (0, 1, 2))
    values = {"storage_path": str(tmp_path / "runs"), "data.source": "parquet",
              "data.path": config.path}  # fmt: skip
    experiment = with_values(Experiment(), values, "test")
    assert any("3 classes, 48 images of 3x6x5" in note for note in describe(experiment).notes)
    images = [encode(image) for image in make_images(48)]
    images[5], images[40] = b"", b"none"
    write(Path(config.path), images, np.arange(48) % 3)
    with pytest.raises(UserError, match=r"2 images cannot be read: .*row 5.*row 40"):
        describe(experiment)
    assert not (tmp_path / "runs").exists()


def test_a_label_beside_mapped_ones_is_named_with_these(tmp_path):
    gappy(tmp_path / "d", (1, 2, 5), "train-")
    config = mapped(gappy(tmp_path / "d", (1, 2, 3), "test-")).model_copy(
        update={"path": str(tmp_path / "d")}
    )
    with pytest.raises(UserError, match=r"the label 3 and 15 more .* \(numbers 1, 2, 5\): 1, 2, 5"):
        prepare_data(config, tmp_path / "cache")
