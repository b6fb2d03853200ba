"""At most `data.max_images` training images are taken from every kind of source."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from krscale.config import DataConfig
from krscale.data import describe_data, prepare_data
from krscale.data.check import check_data
from krscale.data.splits.limiting import taken
from krscale.errors import UserError


def _labels(*counts: int) -> np.ndarray:
    return np.repeat(np.arange(len(counts)), counts)


@pytest.mark.parametrize(
    ("counts", "total", "expected"),
    [
        ((50, 30, 20), 20, [10, 6, 4]),
        ((97, 2, 2), 20, [16, 2, 2]),  # rare classes keep as many as the splits need
        ((90, 7, 3), 10, [4, 3, 3]),
        ((10, 10, 10), 29, [10, 10, 9]),
    ],
)
def test_classes_keep_their_share(counts: tuple[int, ...], total: int, expected: list[int]) -> None:
    labels = _labels(*counts)
    kept = taken(labels, ("a", "b", "c"), 1, DataConfig(max_images=total))
    assert kept is not None
    assert len(set(kept)) == total
    assert (np.diff(kept) > 0).all()
    assert np.bincount(labels[kept]).tolist() == expected


def test_seed_decides_which_and_none_is_dropped_without_need() -> None:
    labels, names = _labels(40, 40), ("a", "b")
    one, same, other = (
        taken(labels, names, 1, DataConfig(max_images=10, seed=seed)) for seed in (1, 1, 2)
    )
    assert one is not None
    assert same is not None
    assert other is not None
    assert (one == same).all()
    assert not (one == other).all()
    for enough in (0, 80, 100):
        assert taken(labels, names, 1, DataConfig(max_images=enough)) is None


def test_too_few_for_the_classes_is_refused() -> None:
    with pytest.raises(UserError, match=r"data.max_images: 5 .* 2 classes in 3 splits; at least 6"):
        taken(_labels(9, 9), ("a", "b"), 1, DataConfig(max_images=5))
    # A source with its own splits needs no images for the others.
    assert taken(_labels(9, 9), ("a", "b"), 3, DataConfig(max_images=2)) is not None


def test_arrays_are_limited_and_described(tmp_path: Path) -> None:
    config = DataConfig(source="digits", max_images=200)
    assert describe_data(config, tmp_path).num_train == 120
    notes: list[str] = []
    data = prepare_data(config, tmp_path, note=notes.append)
    assert data.num_samples == {"train": 120, "val": 30, "test": 50}
    assert "digits: 200 of 1,797 training images are taken (data.max_images)." in notes
    assert data.path != prepare_data(DataConfig(source="digits"), tmp_path).path


def test_rendered_splits_of_the_source_stay_whole(tmp_path: Path) -> None:
    config = DataConfig.model_validate(
        {
            "source": "glyphs",
            "max_images": 20,
            "glyphs": {
                "num_classes": 4, "image_size": 8, "num_train": 60, "num_val": 30, "num_test": 30
            },
        }
    )  # fmt: skip
    assert describe_data(config, tmp_path).num_train == 20
    assert prepare_data(config, tmp_path).num_samples == {"train": 20, "val": 30, "test": 30}


@pytest.mark.parametrize("raw", [False, True])
def test_rows_of_parquet_keep_their_labels(raw: bool, tmp_path: Path) -> None:
    labels = [number % 3 for number in range(60)]
    images = [_png(n) if not raw else bytes([n]) * (3 * 64) for n in range(60)]
    column = pa.array(images, pa.binary(3 * 64) if raw else pa.binary())
    table = pa.table({"image": column, "label": labels})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    files = {"raw_shape": [3, 8, 8]} if raw else {}
    config = DataConfig.model_validate(
        {"source": "parquet", "path": str(tmp_path), "max_images": 24, "files": files}
    )
    data = prepare_data(config, tmp_path / "cache")
    assert data.num_samples == {"train": 14, "val": 4, "test": 6}
    splits = [data.split(name) for name in ("train", "val", "test")]
    found = [int(image[0, 0, 0]) for split in splits for image in np.asarray(split.images)]
    kept = [int(label) for split in splits for label in split.labels]
    assert len(set(found)) == 24
    assert kept == [labels[number] for number in found]


def _png(level: int) -> bytes:
    file = BytesIO()
    Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


def _folder(path: Path, per_class: int) -> Path:
    for label, name in enumerate(("cat", "dog")):
        (path / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = np.full((8, 8, 3), 100 * label + number, np.uint8)
            Image.fromarray(pixels).save(path / name / f"{number:02}.png")
    return path


def test_files_that_are_not_taken_are_not_decoded(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "images", 20)
    config = DataConfig(source="image_folder", path=str(folder), max_images=12)
    labels = _labels(20, 20)
    kept = taken(labels, ("cat", "dog"), 1, config)
    assert kept is not None
    files = sorted(folder.rglob("*.png"))
    left = [file for number, file in enumerate(files) if number not in kept]
    left[0].write_bytes(b"no image")
    data = prepare_data(config, tmp_path / "cache")
    found = {f"{int(image[0, 0, 0])}" for name in ("train", "val", "test")
             for image in np.asarray(data.split(name).images)}  # fmt: skip
    assert found == {str(100 * labels[n] + n % 20) for n in kept}
    assert sum(check_data(config).counts["train"].values()) == data.num_train

    # A broken image that is taken is named by its own path, and skipping it drops no other image.
    broken = files[kept[3]]
    broken.write_bytes(b"no image")
    with pytest.raises(UserError, match=rf"{broken.name}.*data.skip_unreadable"):
        prepare_data(config, tmp_path / "other")
    skipping = config.model_copy(update={"skip_unreadable": True})
    data = prepare_data(skipping, tmp_path / "other")
    rest = {f"{int(image[0, 0, 0])}" for name in ("train", "val", "test")
            for image in np.asarray(data.split(name).images)}  # fmt: skip
    assert rest == found - {str(100 * labels[kept[3]] + kept[3] % 20)}
