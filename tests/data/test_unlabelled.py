"""Images without labels: read from every kind of source, beside the labelled ones."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from krscale.config import DataConfig, Experiment, FilesConfig, ViewsConfig
from krscale.config.older import FORMER_OF_KR, FORMER_WEIGHT
from krscale.data import Dataset, find_unlabelled, prepare_data, prepare_unlabelled
from krscale.data.arrow import Images
from krscale.data.check import check_data
from krscale.data.describe import describe_unlabelled
from krscale.data.joining import join_train_and_val
from krscale.data.loader import Loader
from krscale.data.unlabelled import read_unlabelled
from krscale.data.unlabelled_sources import open_unlabelled
from krscale.errors import UserError
from krscale.methods.batch import UNLABELLED

NUM_TRAIN, NUM_UNLABELLED = 12, 9
SHAPE = (3, 6, 6)
FINGERPRINT = "8bf8a494dc9634ac"


def images(num: int, seed: int) -> Images:
    return np.random.default_rng(seed).integers(0, 256, (num, *SHAPE), dtype=np.uint8)


UNSEEN = images(NUM_UNLABELLED, 7)


def encode(pixels: Images) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """An .npz of two classes with all three splits."""
    path = tmp_path / "labelled.npz"
    arrays: dict[str, Any] = {}
    for seed, (split, num) in enumerate((("train", NUM_TRAIN), ("val", 4), ("test", 6))):
        arrays[f"{split}_images"] = images(num, seed)
        arrays[f"{split}_labels"] = np.arange(num) % 2
    np.savez(path, **arrays)
    return path


def config(labelled: Path, unlabelled: Path | str, **changes: Any) -> DataConfig:
    files = FilesConfig(**changes.pop("files", {}))
    return DataConfig(
        source="numpy", path=str(labelled), unlabelled=str(unlabelled), files=files, **changes
    )


def prepare(given: DataConfig, cache: Path, notes: list[str] | None = None) -> Dataset:
    dataset = prepare_data(given, cache)
    return prepare_unlabelled(given, dataset, cache, note=None if notes is None else notes.append)


def folder(root: Path, found: Images = UNSEEN) -> Path:
    for number, pixels in enumerate(found):
        # At any depth, and in folders that could be taken for classes.
        path = root / ("" if number % 3 == 0 else f"a/{'b' * (number % 3)}") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(pixels))
    return root


def as_list(root: Path) -> Path:
    files = sorted(folder(root / "scans").rglob("*.png"))
    path = root / "list.csv"
    path.write_text("\n".join(["path", *(str(f.relative_to(root)) for f in files)]) + "\n")
    return path


def as_parquet_list(root: Path) -> Path:
    files = sorted(folder(root / "scans").rglob("*.png"))
    path = root / "list.parquet"
    pq.write_table(pa.table({"path": [str(file) for file in files]}), path)
    return path


def as_parquet(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(np.array_split(UNSEEN, 2)):
        # Names of splits mean nothing here, nor does a column of labels.
        table = pa.table({"image": [encode(i) for i in part], "label": [0] * len(part)})
        pq.write_table(table, root / f"test-{number}.parquet")
    return root


def as_npz(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    np.savez(root / "some.npz", images=UNSEEN, ids=np.arange(NUM_UNLABELLED))
    return root / "some.npz"


def as_npy(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    np.save(root / "anything.npy", UNSEEN.transpose(0, 2, 3, 1))
    np.save(root / "labels.npy", np.zeros(3))  # beside it, and not read
    return root / "anything.npy"


def as_saved_set(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": [{"bytes": encode(i), "path": None} for i in UNSEEN]})
    with (
        pa.OSFile(str(root / "data.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as writer,
    ):
        writer.write_table(table)
    (root / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    (root / "dataset_info.json").write_text(json.dumps({"features": {"image": {"_type": "Image"}}}))
    return root


KINDS = (folder, as_list, as_parquet_list, as_parquet, as_npz, as_npy, as_saved_set)


@pytest.mark.parametrize("make", KINDS)
def test_every_kind_is_read_after_the_training_images(
    labelled: Path, tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    given = config(labelled, make(tmp_path / "more"))
    dataset = prepare_data(given, tmp_path / "cache")
    taught = prepare(given, tmp_path / "cache")
    assert (taught.num_train, taught.num_unlabelled) == (
        NUM_TRAIN + NUM_UNLABELLED,
        NUM_UNLABELLED,
    )
    own, both = dataset.split("train"), taught.split("train")
    np.testing.assert_array_equal(both.images[:NUM_TRAIN], own.images)
    np.testing.assert_array_equal(both.labels[:NUM_TRAIN], own.labels)
    assert (both.labels[NUM_TRAIN:] == UNLABELLED).all()
    assert sorted(i.tobytes() for i in both.images[NUM_TRAIN:]) == sorted(
        i.tobytes() for i in UNSEEN
    )
    assert (taught.mean, taught.std, taught.classes) == (dataset.mean, dataset.std, dataset.classes)
    assert list(taught.num_samples) == ["train"]  # validation and test come from the labelled data
    assert check_data(given).num_unlabelled == NUM_UNLABELLED
    assert describe_unlabelled(given, SHAPE, tmp_path / "other") == NUM_UNLABELLED


def test_without_the_setting_nothing_is_another(labelled: Path, tmp_path: Path) -> None:
    plain = config(labelled, "")
    dataset = prepare_data(plain, tmp_path / "cache")
    assert prepare_unlabelled(plain, dataset, tmp_path / "cache") is dataset
    assert find_unlabelled(plain, dataset, tmp_path / "cache") is dataset
    assert (dataset.num_unlabelled, dataset.unlabelled) == (0, "")
    manifest = json.loads((dataset.path / "manifest.json").read_text())
    assert "unlabelled" not in json.dumps(manifest)
    with_them = config(labelled, folder(tmp_path / "more"))
    again = prepare_data(with_them, tmp_path / "cache")
    assert (again.path, again.fingerprint) == (dataset.path, dataset.fingerprint)
    ours, theirs = Experiment(data=plain), Experiment(data=with_them)
    assert ours.fingerprint() != theirs.fingerprint()


def test_the_experiment_of_before_has_its_fingerprint() -> None:
    # `Experiment().fingerprint()` before the setting and KR's second formulation existed.
    assert (
        Experiment(distill={**FORMER_OF_KR, "kr_weight": FORMER_WEIGHT}).fingerprint()
        == FINGERPRINT
    )


def test_it_is_built_once_and_known_by_its_content(labelled: Path, tmp_path: Path) -> None:
    given, cache = config(labelled, folder(tmp_path / "more")), tmp_path / "cache"
    dataset = prepare_data(given, cache)
    assert find_unlabelled(given, dataset, cache) is None
    first = prepare(given, cache)
    assert find_unlabelled(given, dataset, cache) == first
    elsewhere = prepare(config(labelled, folder(tmp_path / "copy")), cache)
    assert elsewhere.path != first.path
    assert (elsewhere.fingerprint, elsewhere.unlabelled) == (first.fingerprint, first.unlabelled)
    (tmp_path / "copy/00.png").write_bytes(encode(images(1, 99)[0]))
    other = prepare(config(labelled, tmp_path / "copy"), cache)
    assert other.fingerprint != first.fingerprint
    assert other.unlabelled != first.unlabelled


@pytest.mark.parametrize(("split", "seed"), [("val", 1), ("test", 2)])
def test_copies_of_what_is_judged_by_are_refused_or_said(
    labelled: Path, tmp_path: Path, split: str, seed: int
) -> None:
    leaked = np.concatenate([UNSEEN, images(2, seed)])
    path, notes = folder(tmp_path / "more", leaked), list[str]()
    given = config(labelled, path)
    with pytest.raises(UserError, match=rf"pixel by pixel: 2: .*09\.png \(in {split}\)"):
        prepare(given, tmp_path / "cache")
    assert any(f"(in {split})" in problem for problem in check_data(given).problems)
    given = config(labelled, path, allow_duplicates=True)
    taught = prepare(given, tmp_path / "cache", notes)
    assert taught.num_unlabelled == NUM_UNLABELLED + 2
    assert f"also in {split}, pixel by pixel: 2." in notes[-1]
    assert not check_data(given).problems


def test_copies_of_training_images_are_left_out_and_said(labelled: Path, tmp_path: Path) -> None:
    both = np.concatenate([images(3, 0), UNSEEN])
    given, notes = config(labelled, folder(tmp_path / "more", both)), list[str]()
    taught = prepare(given, tmp_path / "cache", notes)
    assert taught.num_unlabelled == NUM_UNLABELLED == check_data(given).num_unlabelled
    assert "labelled training images, pixel by pixel: 3; they are left out" in notes[-1]
    all_of_them = config(labelled, folder(tmp_path / "same", images(3, 0)))
    with pytest.raises(UserError, match="all of its 3 images are also among the labelled"):
        prepare(all_of_them, tmp_path / "cache")


def test_images_that_cannot_be_read(labelled: Path, tmp_path: Path) -> None:
    path = folder(tmp_path / "more")
    (path / "00.png").write_bytes(b"no image")
    (path / "notes.txt").write_text("not an image either")
    with pytest.raises(UserError, match=r"1 image cannot be read: .*00\.png"):
        prepare(config(labelled, path), tmp_path / "cache")
    given, notes = config(labelled, path, skip_unreadable=True), list[str]()
    assert prepare(given, tmp_path / "cache", notes).num_unlabelled == NUM_UNLABELLED - 1
    assert "1 image left out" in "\n".join(notes)
    assert "files of other types: 1" in "\n".join(notes)
    found = check_data(given)
    assert (found.num_unlabelled, found.problems) == (NUM_UNLABELLED - 1, ())
    assert "8 without labels" in found.summary()
    assert "cannot be read" in "".join(check_data(config(labelled, path)).problems)


def test_another_size_is_refused_with_the_way_on(labelled: Path, tmp_path: Path) -> None:
    large = np.random.default_rng(5).integers(0, 256, (4, 3, 9, 8), dtype=np.uint8)
    path = folder(tmp_path / "more", large)
    with pytest.raises(UserError, match=r"3x9x8 .* 3x6x6\. data\.files\.image_size = 6"):
        prepare(config(labelled, path), tmp_path / "cache")
    given = config(labelled, path, files={"image_size": 6})
    assert prepare(given, tmp_path / "cache").num_unlabelled == 4


def test_they_are_read_with_the_channels_of_the_labelled(tmp_path: Path) -> None:
    path = tmp_path / "more"
    path.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{number}.png")
    given = DataConfig(unlabelled=str(path))  # digits: grey, 8x8
    assert prepare(given, tmp_path / "cache").image_shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root / "nowhere", "no such file or folder; expected a folder of images"),
        (lambda root: root, r"no image in it"),
        (lambda root: _write(root / "x.png", b"1"), "one image; expected a folder"),
        (lambda root: _write(root / "x.txt", b"1"), "no source reads such a file"),
        (lambda root: _write(root / "x", b"PAR1"), "not a readable Parquet file"),
        (lambda root: _write(root / "a/train-images-idx3-ubyte", b"1").parent, "of the kind idx"),
        (lambda root: _write(root / "list.csv", b"path\n"), "there are no images"),
        (lambda root: _write(root / "list.csv", b"file\nx.png\n"), "unknown column 'path'"),
        (lambda root: _two_arrays(root), r"one array of images is needed .* x_train, x_test"),
        (lambda root: _dark_16_bits(root), "whether white is 255 or 65535; give them as uint8"),
        (lambda root: _two_sets(root), r"name the folder of one of them: .*unsupervised"),
    ],
)
def test_what_is_refused(
    labelled: Path, tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(UserError, match=message) as caught:
        prepare(config(labelled, make(tmp_path / "root")), tmp_path / "cache")
    assert "data.path" not in str(caught.value)


def _write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _two_arrays(root: Path) -> Path:
    np.savez(root / "x.npz", x_train=UNSEEN, x_test=UNSEEN)
    return root / "x.npz"


def _dark_16_bits(root: Path) -> Path:
    np.save(root / "x.npy", UNSEEN.astype(">u2"))
    return root / "x.npy"


def _two_sets(root: Path) -> Path:
    (root / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "unsupervised"]}))
    return root


def test_a_refit_learns_from_them_after_validation(labelled: Path, tmp_path: Path) -> None:
    given, cache = config(labelled, folder(tmp_path / "more")), tmp_path / "cache"
    joined = join_train_and_val(prepare_data(given, cache), cache)
    taught = prepare_unlabelled(given, joined, cache)
    assert taught.num_train == NUM_TRAIN + 4 + NUM_UNLABELLED
    labels = taught.split("train").labels
    assert (labels == UNLABELLED).sum() == (labels[-NUM_UNLABELLED:] == UNLABELLED).sum() == 9


def test_a_mixed_view_has_labels_only_where_both_images_have(
    labelled: Path, tmp_path: Path
) -> None:
    taught = prepare(config(labelled, folder(tmp_path / "more")), tmp_path / "cache")
    loader = Loader(
        taught,
        ViewsConfig(mixup=1.0),
        global_batch_size=7,
        seed=0,
        device=torch.device("cpu"),
    )
    for epoch in range(4):
        samples = 0
        for batch in loader.epoch(epoch):
            assert batch.mixture is not None
            missing = batch.labels == UNLABELLED
            assert torch.equal(missing, batch.mixture.labels == UNLABELLED)
            assert missing[batch.samples >= NUM_TRAIN].all()
            samples += len(missing)
        assert samples == NUM_TRAIN + NUM_UNLABELLED


def test_reading_is_reported(labelled: Path, tmp_path: Path) -> None:
    given, seen = config(labelled, folder(tmp_path / "more")), list[tuple[int, int]]()
    source = open_unlabelled(given, 3)
    read_unlabelled(source, given, SHAPE, lambda *done: seen.append(done), tmp_path)
    assert seen[-1] == (NUM_UNLABELLED, NUM_UNLABELLED)
