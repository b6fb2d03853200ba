import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from krscale import digests
from krscale.config import DataConfig, ViewsConfig
from krscale.data import (
    SOURCES,
    SPLITS,
    SourceData,
    Split,
    describe_data,
    open_data,
    prepare_data,
)
from krscale.data.arrow import read_split, write_split
from krscale.data.loader import Loader
from krscale.errors import UserError
from krscale.files import write_json


def made_source(data, *, own_splits=(), reads=None, options=None):
    """Return a source that returns `data` and appends to `reads` at each read."""

    class Made:
        def __init__(self, config):
            pass

        def identity(self):
            return options or {}

        def read(self, report):
            if reads is not None:
                reads.append(1)
            return data

    Made.own_splits = own_splits
    return Made


def random_split(num_samples=60, num_classes=3, shape=(1, 4, 4), seed=0):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (num_samples, *shape), dtype=np.uint8)
    return Split(images, np.arange(num_samples, dtype=np.int64) % num_classes)


@pytest.fixture
def prepare(monkeypatch, tmp_path):
    """Prepare data of a source named `made`."""

    def prepare(source, **config):
        monkeypatch.setitem(SOURCES, "made", source)
        return prepare_data(DataConfig(source="made", **config), tmp_path)

    return prepare


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return prepare_data(DataConfig(), tmp_path_factory.mktemp("cache"))


def rows(split):
    return [
        (image.tobytes(), int(label))
        for image, label in zip(split.images, split.labels, strict=True)
    ]


def all_rows(dataset):
    return sorted(row for name in SPLITS for row in rows(dataset.split(name)))


def test_digits_are_scikit_learns_cut_three_ways(digits):
    assert digits.num_samples == {"train": 1077, "val": 270, "test": 450}
    assert digits.classes == tuple("0123456789")
    assert digits.image_shape == (1, 8, 8)
    original = load_digits()
    expected = sorted(
        (np.floor(image * 255 / 16 + 0.5).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(original.images, original.target, strict=True)
    )
    assert all_rows(digits) == expected


def test_digits_hold_no_copies(digits):
    assert len({image for image, _ in all_rows(digits)}) == 1797


def test_digits_are_cut_as_they_always_were(digits):
    from sklearn.model_selection import train_test_split

    labels = load_digits().target
    rest, test = train_test_split(np.arange(1797), test_size=0.25, stratify=labels, random_state=0)
    rest = np.sort(rest)
    train, val = train_test_split(rest, test_size=0.2, stratify=labels[rest], random_state=0)
    for name, chosen in (("train", train), ("val", val), ("test", test)):
        assert digits.split(name).labels.tolist() == labels[np.sort(chosen)].tolist()
    assert digits.path.name == f"digits-{digits.fingerprint}"


def test_a_setting_that_came_later_leaves_older_data_sets_theirs(prepare):
    source = made_source(SourceData(("a", "b", "c"), {"train": random_split()}))
    manifest = json.loads((prepare(source).path / "manifest.json").read_text())
    assert manifest["identity"] == {
        "format": 1,
        "source": "made",
        "images": {},
        "cuts": {"test": 0.25, "val": 0.2, "seed": 0},
    }
    assert prepare(source, allow_duplicates=True).fingerprint != manifest["fingerprint"]


def test_digits_splits_are_stratified(digits):
    whole = np.bincount(load_digits().target) / 1797
    for name in SPLITS:
        labels = digits.split(name).labels
        assert np.abs(np.bincount(labels, minlength=10) / len(labels) - whole).max() < 0.005


def test_statistics_are_those_of_the_training_images(digits):
    pixels = digits.split("train").images.astype(np.float64) / 255
    assert digits.mean == pytest.approx([pixels.mean()], abs=1e-12)
    assert digits.std == pytest.approx([pixels.std()], abs=1e-12)


def test_splits_are_mapped_read_only_and_shared_with_torch(digits):
    split = digits.split("train")
    assert split.images.dtype == np.uint8
    assert split.labels.dtype == np.int64
    assert not split.images.flags.writeable
    images, labels = split.tensors()
    assert images.data_ptr() == split.images.ctypes.data
    assert labels.data_ptr() == split.labels.ctypes.data
    assert images.shape == split.images.shape


def test_unknown_split_names_the_nearest(digits):
    with pytest.raises(UserError, match=r"unknown split 'valid'\..*'val'"):
        digits.split("valid")


def test_data_sets_travel_between_processes(digits):
    copy = pickle.loads(pickle.dumps(digits))
    assert copy == digits
    assert rows(copy.split("val")) == rows(digits.split("val"))


def test_second_call_reuses_the_first(prepare):
    reads = []
    source = made_source(SourceData(("a", "b", "c"), {"train": random_split()}), reads=reads)
    first = prepare(source)
    before = {p.name: p.stat().st_mtime_ns for p in first.path.iterdir()}
    assert prepare(source) == first
    assert reads == [1]
    assert {p.name: p.stat().st_mtime_ns for p in first.path.iterdir()} == before
    assert open_data(first.path) == first


def test_seed_changes_the_cut_and_nothing_else(prepare):
    source = made_source(SourceData(("a", "b", "c"), {"train": random_split()}))
    first, again, other = prepare(source), prepare(source, seed=0), prepare(source, seed=-1)
    assert first.path == again.path != other.path
    assert first.num_samples == other.num_samples
    cut = [set(rows(d.split("test"))) for d in (first, other)]
    assert cut[0] != cut[1]
    assert all_rows(first) == all_rows(other)


@pytest.mark.parametrize("changed", [{"seed": 1}, {"val_fraction": 0.3}, {"test_fraction": 0.3}])
def test_fingerprint_tells_cuts_apart(prepare, changed):
    source = made_source(SourceData(("a", "b", "c"), {"train": random_split()}))
    assert prepare(source).fingerprint != prepare(source, **changed).fingerprint


def test_fingerprint_tells_sources_apart(prepare):
    data = SourceData(("a", "b", "c"), {"train": random_split()})
    prints = [prepare(made_source(data, options=o)).fingerprint for o in ({"size": 1}, {"size": 2})]
    assert prints[0] != prints[1]


def test_splits_of_the_source_stay_as_they_are(prepare):
    own = {"train": random_split(), "test": random_split(7, seed=1)}
    source = made_source(SourceData(("a", "b", "c"), own), own_splits=("test",))
    data = prepare(source, val_fraction=0.25)
    assert rows(data.split("test")) == rows(own["test"])
    assert data.num_samples == {"train": 45, "val": 15, "test": 7}
    assert prepare(source, val_fraction=0.25, test_fraction=0.4).path == data.path


def test_crash_leaves_nothing_and_the_next_call_builds(prepare, tmp_path, monkeypatch):
    source = made_source(SourceData(("a", "b", "c"), {"train": random_split()}))
    monkeypatch.setattr("krscale.data.building.write_split", crash_on_second_call())
    with pytest.raises(OSError, match="disk full"):
        prepare(source)
    assert [p for p in (tmp_path / "data").iterdir() if p.is_dir()] == []
    monkeypatch.undo()
    assert prepare(source).num_samples["train"] == 36


def crash_on_second_call():
    calls = []

    def write(path, split):
        calls.append(path)
        if len(calls) == 2:
            raise OSError("disk full")
        write_split(path, split)

    return write


BUILD_SLOWLY = """
import os, sys, time
from pathlib import Path
from krscale import digests
from krscale.config import DataConfig, ViewsConfig
from krscale.data import SOURCES, prepare_data

class Slow(SOURCES["digits"]):
    def read(self, report):
        with (Path(sys.argv[1]) / "reads").open("a") as file:
            file.write("read ")
        time.sleep(1)
        return super().read(report)

SOURCES["slow"] = Slow
other = os.fork()  # two processes for the imports of one
path = prepare_data(DataConfig(source="slow"), Path(sys.argv[1])).path
os.write(1, f"{path}\\n".encode())  # in one piece, which print does not with PYTHONUNBUFFERED
if other and os.waitpid(other, 0)[1]:
    sys.exit(1)
"""


def test_processes_that_start_together_build_once(tmp_path):
    command = [sys.executable, "-c", BUILD_SLOWLY, str(tmp_path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    one, other = done.stdout.splitlines()
    assert one == other
    assert (tmp_path / "reads").read_text() == "read "
    assert {one} == {str(p) for p in (tmp_path / "data").iterdir() if p.is_dir()}


def test_written_columns_are_plain_arrow(digits):
    import pyarrow as pa

    with pa.memory_map(str(digits.path / "val.arrow")) as file:
        schema = pa.ipc.open_file(file).schema
    assert schema.field("image").type == pa.fixed_shape_tensor(pa.uint8(), [1, 8, 8])
    assert schema.field("label").type == pa.int64()


def test_round_trip_of_images_that_are_not_contiguous(tmp_path):
    split = random_split(shape=(3, 5, 4))
    turned = Split(split.images.transpose(0, 1, 3, 2), split.labels)
    write_split(tmp_path / "x.arrow", turned)
    assert np.array_equal(read_split(tmp_path / "x.arrow").images, turned.images)


def good():
    return random_split()


def changed_labels(index, value):
    split = good()
    split.labels[index] = value
    return split


@pytest.mark.parametrize(
    ("classes", "splits", "message"),
    [
        (("a",), {"train": random_split(num_classes=1)}, "at least two classes"),
        ((), {"train": good()}, "at least two classes"),
        (("a", "b", "b"), {"train": good()}, "class names given twice: b"),
        (("a", "b"), {"train": good()}, r"20 labels are outside 0..1; the first is 2 at image 2"),
        (("a", "b", "c"), {"train": changed_labels(5, -1)}, "the first is -1 at image 5"),
        (("a", "b", "c"), {"train": random_split(0)}, "train: there are no images"),
        (("a", "b", "c"), {"train": good(), "test": random_split(0)}, "test: there are no images"),
        (("a", "b", "c"), {"train": random_split(num_classes=1)}, "2 of 3 classes .* image: b, c"),
        (("a", "b", "c", "d"), {"train": good()}, "1 of 4 classes have no training image: d"),
        (
            ("a", "b", "c"),
            {"train": good(), "test": random_split(shape=(1, 5, 4))},
            r"differ in shape .*\(1, 4, 4\).*\(1, 5, 4\)",
        ),
        (("a", "b", "c"), {"train": Split(good().images / 255, good().labels)}, "must be uint8"),
        (("a", "b", "c"), {"train": Split(good().images, good().labels[1:])}, "60 images need"),
        (
            ("a", "b", "c"),
            {"train": random_split(4)},
            "made: 3 of 3 classes .* 'a' has 2, 'b' has 1",
        ),
    ],
)
def test_bad_data_is_refused_and_leaves_no_folder(prepare, tmp_path, classes, splits, message):
    own = tuple(name for name in splits if name != "train")
    with pytest.raises(UserError, match=message):
        prepare(made_source(SourceData(classes, splits), own_splits=own))
    assert [p for p in (tmp_path / "data").iterdir() if p.is_dir()] == []


def test_unknown_source_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"data\.source: unknown source 'digit'\..*'digits'"):
        prepare_data(DataConfig(source="digit"), tmp_path)


@pytest.mark.parametrize("name", ["mnist", "Fashion-MNIST", "fashion_mnist", "emnist"])
def test_a_data_set_that_has_another_sources_files_names_that(name, tmp_path):
    with pytest.raises(UserError, match=rf"files of '{name}' are read by the source 'idx'"):
        prepare_data(DataConfig(source=name), tmp_path)


def test_embedded_source_refuses_a_path(tmp_path):
    with pytest.raises(UserError, match=r"data\.path: the source 'digits' reads no file"):
        prepare_data(DataConfig(path="/images"), tmp_path)


def test_constant_images_keep_a_finite_scale(prepare):
    split = random_split()
    split.images[:] = 51
    source = made_source(SourceData(("a", "b", "c"), {"train": split}))
    data = prepare(source, allow_duplicates=True)
    assert data.mean == pytest.approx((0.2,))
    assert data.std == pytest.approx((1 / 255,))


@pytest.fixture
def built(prepare):
    return prepare(made_source(SourceData(("a", "b", "c"), {"train": random_split()})))


def test_verify_finds_one_flipped_byte(built):
    built.verify()
    path = built.path / "val.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"val\.arrow: damaged"):
        built.verify()


@pytest.fixture
def in_blocks(prepare, monkeypatch):
    """A data set whose images are in many blocks."""
    monkeypatch.setattr(digests, "BLOCK_BYTES", 1024)
    data = prepare(made_source(SourceData(("a", "b", "c"), {"train": random_split(600)})))
    digest = digests.read_digest(data.path / "train.arrow")
    assert len(digest.blocks) > 8
    return data


def flip_image(data, row):
    """Change a byte in the middle of an image of the training split."""
    path = data.path / "train.arrow"
    content, image = bytearray(path.read_bytes()), data.split("train").images[row].tobytes()
    at = content.index(image) + len(image) // 2
    content[at] ^= 1
    path.write_bytes(content)


def test_images_are_compared_when_they_are_read(in_blocks):
    row = in_blocks.num_train // 2
    flip_image(in_blocks, row)
    split = in_blocks.split("train", lazily=True)
    split.check(np.array([0, in_blocks.num_train - 1]))
    split.check(np.array([], dtype=np.int64))
    with pytest.raises(UserError, match=r"train\.arrow: damaged: bytes \d+ to \d+"):
        split.check(np.array([0, row]))
    with pytest.raises(UserError, match=r"train\.arrow: damaged"):
        split.check()
    with pytest.raises(UserError, match=r"train\.arrow: damaged"):
        in_blocks.split("train")


@pytest.mark.parametrize("row", [100, 222])
def test_a_loader_refuses_what_it_would_train_on(in_blocks, row):
    flip_image(in_blocks, row)
    loader = Loader(
        in_blocks, ViewsConfig(num_views=1), global_batch_size=8, seed=0,
        device=torch.device("cpu"),
    )  # fmt: skip
    seen = []
    with pytest.raises(UserError, match=r"train\.arrow: damaged"):
        seen.extend(sample for batch in loader.epoch(0) for sample in batch.samples.tolist())
    assert row not in seen


def test_labels_are_compared_when_a_split_is_opened(in_blocks):
    path = in_blocks.path / "train.arrow"
    content, labels = bytearray(path.read_bytes()), in_blocks.split("train").labels.tobytes()
    content[content.index(labels) + 8] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"train\.arrow: damaged"):
        in_blocks.split("train", lazily=True)


@pytest.mark.parametrize("label", [-1, 3, 2**40])
def test_labels_that_are_no_classes_are_refused(built, label):
    """They are refused even if the digest matches."""
    path = built.path / "test.arrow"
    split = read_split(path)
    wrong = np.array([*split.labels[:-1], label])
    images = split.images.copy()
    write_split(path, Split(images, wrong))
    digests.write_digest(path)
    with pytest.raises(UserError, match=rf"test\.arrow: damaged: label {label} is none of the 3"):
        built.split("test")


def test_without_a_digest_the_hash_of_the_manifest_counts(built):
    digests.digest_path(built.path / "val.arrow").unlink()
    built.verify()
    path = built.path / "val.arrow"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"val\.arrow: damaged"):
        built.split("val")


def test_truncated_split_is_refused(built):
    path = built.path / "train.arrow"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged: it has 100 bytes"):
        built.split("train")


def test_exchanged_split_is_refused(built):
    (built.path / "val.arrow").replace(built.path / "train.arrow")
    digests.write_digest(built.path / "train.arrow")
    with pytest.raises(UserError, match=r"its manifest says \[36, 1, 4, 4\]"):
        built.split("train")


def test_missing_split_is_refused(built):
    (built.path / "val.arrow").unlink()
    with pytest.raises(UserError, match=r"val\.arrow: damaged: it cannot be opened"):
        built.split("val")


@pytest.mark.parametrize("damage", ["{", "{}", '{"format": 1}', "[]"])
def test_damaged_manifest_is_refused(built, damage):
    (built.path / "manifest.json").write_text(damage)
    with pytest.raises(UserError, match=r"manifest\.json: damaged"):
        open_data(built.path)


def test_other_format_is_refused(built):
    manifest = json.loads((built.path / "manifest.json").read_text())
    write_json(built.path / "manifest.json", {**manifest, "format": 99})
    with pytest.raises(UserError, match="written in format 99"):
        open_data(built.path)


def test_description_is_the_same_before_and_after_building(tmp_path):
    before = describe_data(DataConfig(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    dataset = prepare_data(DataConfig(), tmp_path)
    assert describe_data(DataConfig(), tmp_path) == before
    assert (before.num_classes, before.image_shape) == (10, dataset.image_shape)
    assert before.num_train == dataset.num_samples["train"]
