"""Image files in a folder per class."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from krscale.config import DataConfig, FilesConfig
from krscale.data import SPLITS, decoding, prepare_data
from krscale.errors import UserError

CLASSES = ("ant", "bee", "cat")


def save(path: Path, seed: int, size=(6, 5)) -> np.ndarray:
    """Write a PNG of noise and return its pixels `[3, H, W]`."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels.transpose(2, 0, 1)


def fill(root: Path, num_images: int = 12, classes=CLASSES, seed: int = 0) -> set:
    """Write images of each class; return (pixels, label)."""
    found = set()
    for label, name in enumerate(classes):
        for number in range(num_images):
            path = root / name / f"{number:02}.png"
            found.add((save(path, seed + 100 * label + number).tobytes(), label))
    return found


def prepare(path: Path, cache: Path, **files):
    settings = FilesConfig(**files)
    return prepare_data(DataConfig(source="image_folder", path=str(path), files=settings), cache)


def rows(dataset, names=SPLITS) -> set:
    return {
        (image.tobytes(), int(label))
        for name in names
        for image, label in zip(dataset.split(name).images, dataset.split(name).labels, strict=True)
    }


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(decoding, "PIECE_BYTES", 5 * 90)


def test_a_folder_per_class(tmp_path):
    expected = fill(tmp_path / "data")
    (tmp_path / "data/ant/notes.txt").write_text("not an image")
    (tmp_path / "data/ant/.hidden.png").write_text("not an image")
    (tmp_path / "data/.cache").mkdir()
    dataset = prepare(tmp_path / "data", tmp_path / "cache")
    assert dataset.classes == CLASSES
    assert dataset.image_shape == (3, 6, 5)
    assert rows(dataset) == expected
    assert dataset.num_samples == {"train": 21, "val": 6, "test": 9}


def test_a_folder_per_split_and_class(tmp_path):
    expected = {
        name: fill(tmp_path / "data" / folder, count, seed=seed)
        for name, folder, count, seed in (
            ("train", "train", 6, 0), ("val", "validation", 2, 1000), ("test", "test", 3, 2000),
        )
    }  # fmt: skip
    dataset = prepare(tmp_path / "data", tmp_path / "cache")
    for name in SPLITS:
        assert rows(dataset, (name,)) == expected[name]


def test_a_class_may_be_called_train(tmp_path):
    expected = fill(tmp_path / "data", classes=("bus", "test", "train"))
    dataset = prepare(tmp_path / "data", tmp_path / "cache")
    assert dataset.classes == ("bus", "test", "train")
    assert rows(dataset) == expected


def test_order_of_the_classes_may_be_given(tmp_path):
    fill(tmp_path / "data")
    dataset = prepare(tmp_path / "data", tmp_path / "cache", classes=("cat", "bee", "ant"))
    first = (tmp_path / "data/cat/00.png").resolve()
    pixels = np.asarray(Image.open(first)).transpose(2, 0, 1).tobytes()
    assert (pixels, 0) in rows(dataset)


def test_a_new_or_changed_image_is_another_data_set(tmp_path):
    fill(tmp_path / "data")
    first = prepare(tmp_path / "data", tmp_path / "cache")
    assert prepare(tmp_path / "data", tmp_path / "cache") == first
    save(tmp_path / "data/ant/new.png", 9999)
    second = prepare(tmp_path / "data", tmp_path / "cache")
    assert second.fingerprint != first.fingerprint
    save(tmp_path / "data/ant/new.png", 7777)
    assert prepare(tmp_path / "data", tmp_path / "cache").fingerprint != second.fingerprint


def break_image(root: Path) -> None:
    path = root / "bee/07.png"
    path.write_bytes(path.read_bytes()[:70])


def empty_class(root: Path) -> None:
    (root / "dog").mkdir()
    (root / "dog/readme.md").write_text("soon")


def other_size(root: Path) -> None:
    save(root / "cat/03.png", 1, (6, 6))


def unknown_class(root: Path) -> None:
    for name in CLASSES:
        (root / "train").mkdir(exist_ok=True)
        (root / name).rename(root / "train" / name)
    save(root / "test/beee/0.png", 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (break_image, r"bee/07\.png: not a readable image \("),
        (empty_class, r"dog: no image in this class \(\.bmp, \.gif"),
        (other_size, r"cat/03\.png: 6x6 pixels, where the first image has 6x5"),
        (unknown_class, r"beee/0\.png: the label beee is outside the 3 classes.*mean 'bee'"),
    ],
)
def test_refused_by_file(tmp_path, change, message):
    fill(tmp_path / "data")
    change(tmp_path / "data")
    with pytest.raises(UserError, match=message):
        prepare(tmp_path / "data", tmp_path / "cache")
    assert list((tmp_path / "cache").rglob("*.arrow")) == []


def test_paths(tmp_path):
    with pytest.raises(UserError, match="no folder of a class in it"):
        prepare(tmp_path, tmp_path / "cache")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not a folder; expected CLASS"):
        prepare(tmp_path / "file", tmp_path / "cache")
    with pytest.raises(UserError, match="no such file or folder"):
        prepare(tmp_path / "nothing", tmp_path / "cache")
