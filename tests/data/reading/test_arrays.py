"""Images from arrays: NumPy files, IDX files, and arrays that a function returns."""

from __future__ import annotations

import gzip
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from krscale.config import DataConfig, FilesConfig
from krscale.data import SPLITS, Dataset, prepare_data
from krscale.data.reading.arrays import Arrays, source_data, to_images
from krscale.data.sources.guessing import guess_source
from krscale.errors import UserError

NUM = 36


def images(num: int = NUM, *, seed: int = 0, shape: tuple[int, ...] = (3, 6, 5)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, *shape), dtype=np.uint8)


def labels(num: int = NUM) -> np.ndarray:
    return np.arange(num) % 3


def prepare(source: str, path: object, cache: Path, **files: Any) -> Dataset:
    mapped = files.pop("map_labels", False)
    config = DataConfig(
        source=source, path=str(path or ""), files=FilesConfig(**files), map_labels=mapped
    )
    return prepare_data(config, cache)


def rows(dataset: Dataset, names: tuple[str, ...] = SPLITS) -> list[tuple[bytes, int]]:
    return sorted(
        (image.tobytes(), int(label))
        for name in names
        for image, label in zip(dataset.split(name).images, dataset.split(name).labels, strict=True)
    )


def expected(pixels: np.ndarray, of: np.ndarray) -> list[tuple[bytes, int]]:
    return sorted((i.tobytes(), int(n)) for i, n in zip(pixels, of, strict=True))


class TestNumpy:
    @pytest.mark.parametrize("layout", ["first", "last", "grey", "one"])
    def test_an_archive(self, tmp_path, layout):
        pixels = images(shape=(3, 6, 5) if layout in ("first", "last") else (1, 6, 5))
        written = {"first": pixels, "last": np.moveaxis(pixels, 1, 3), "grey": pixels[:, 0],
                   "one": np.moveaxis(pixels, 1, 3)}[layout]  # fmt: skip
        np.savez(tmp_path / "a.npz", images=written, labels=labels()[:, None])
        found = prepare("numpy", tmp_path / "a.npz", tmp_path / "cache")
        assert rows(found) == expected(pixels, labels())
        assert found.classes == ("0", "1", "2")
        assert "image" in (found.path / "splits.csv").read_text()

    @pytest.mark.parametrize(
        "names",
        [
            {"train": ("train_images", "train_labels"), "test": ("test_images", "test_labels")},
            {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")},
        ],
    )
    def test_splits_of_their_own(self, tmp_path, names):
        other = images(6, seed=9)
        np.savez_compressed(
            tmp_path / "a.npz",
            **{
                names["train"][0]: images(),
                names["train"][1]: labels(),
                names["test"][0]: other,
                names["test"][1]: labels(6),
            },
        )
        found = prepare("numpy", tmp_path / "a.npz", tmp_path / "cache")
        assert rows(found, ("test",)) == expected(other, labels(6))

    @pytest.mark.parametrize("named", ["images.npy", ""])
    def test_a_pair_of_files(self, tmp_path, named):
        (tmp_path / "d").mkdir()
        np.save(tmp_path / "d/images.npy", images())
        np.save(tmp_path / "d/labels.npy", np.array(["ant", "bee", "cat"])[labels()])
        np.save(tmp_path / "d/other.npy", np.zeros(3))
        found = prepare("numpy", tmp_path / "d" / named, tmp_path / "cache")
        assert rows(found) == expected(images(), labels())
        assert found.classes == ("ant", "bee", "cat")

    def test_names_of_classes(self, tmp_path):
        names = np.array(["ant", "bee", "cat"])
        np.savez(tmp_path / "a.npz", images=images(), labels=labels(), classes=names)
        path = tmp_path / "a.npz"
        assert prepare("numpy", path, tmp_path / "cache").classes == ("ant", "bee", "cat")
        given = prepare("numpy", path, tmp_path / "cache", classes=("x", "y", "z"))
        assert given.classes == ("x", "y", "z")

    def test_names_of_classes_as_bytes(self, tmp_path):
        names = np.array([b"ant", b"bee", "caf\u00e9".encode()])
        np.savez(tmp_path / "a.npz", images=images(), labels=labels(), classes=names)
        found = prepare("numpy", tmp_path / "a.npz", tmp_path / "cache")
        assert found.classes == ("ant", "bee", "caf\u00e9")
        np.savez(tmp_path / "b.npz", images=images(), labels=labels(), classes=np.eye(3))
        with pytest.raises(UserError, match=r"classes: not a list of names .*type float64"):
            prepare("numpy", tmp_path / "b.npz", tmp_path / "cache")

    def test_all_names_of_splits(self, tmp_path):
        other = images(6, seed=9)
        arrays = {"Training_images": images(), "Training_labels": labels(), "y_testing": labels(6)}
        np.savez(tmp_path / "a.npz", **arrays, x_testing=other, images=other, ids=np.zeros(3))
        notes: list[str] = []
        config = DataConfig(source="numpy", path=str(tmp_path / "a.npz"))
        found = prepare_data(config, tmp_path / "cache", note=notes.append)
        assert rows(found, ("test",)) == expected(other, labels(6))
        assert any("arrays that were passed over: images, ids" in note for note in notes)

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (("val_images", "val_labels", "valid_images", "valid_labels"),
             "val_images and valid_images are both images of the split val"),
            (("X_train",), "train_images and X_train are both images of the split train"),
            (("training_labels",), "are both labels of the split train"),
        ],
    )  # fmt: skip
    def test_two_names_of_one_split(self, tmp_path, names, message):
        arrays = {name: images(6) if "im" in name.lower() else labels(6) for name in names}
        np.savez(tmp_path / "a.npz", train_images=images(), train_labels=labels(), **arrays)
        with pytest.raises(UserError, match=message):
            prepare("numpy", tmp_path / "a.npz", tmp_path / "cache")

    @pytest.mark.parametrize("names", [("x_dev", "y_dev"), ("data_holdout",), ("Tst-X", "Tst-Y")])
    def test_splits_by_a_word_that_is_not_read(self, tmp_path, names):
        split = "val" if "dev" in names[0] else "test"
        arrays = {name: images(6) if name == names[0] else labels(6) for name in names}
        train = {"x_train": images(), "y_train": labels()}
        np.savez(tmp_path / "a.npz", **train, **arrays)
        with pytest.raises(UserError, match=f"{names[0]} is named after the split {split}, but by"):
            prepare("numpy", tmp_path / "a.npz", tmp_path / "cache")
        other = images(6, seed=9)
        own = {f"x_{split}": other, f"y_{split}": labels(6)}
        np.savez(tmp_path / "b.npz", **train, **arrays, **own)
        found = prepare("numpy", tmp_path / "b.npz", tmp_path / "cache")
        assert rows(found, (split,)) == expected(other, labels(6))

    def test_the_file_that_is_named_is_read(self, tmp_path):
        for name, array in (("images", images()), ("data", images(seed=5)), ("labels", labels())):
            np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(UserError, match="data and images are both images"):
            prepare("numpy", tmp_path, tmp_path / "cache")
        found = prepare("numpy", tmp_path / "images.npy", tmp_path / "cache")
        assert rows(found) == expected(images(), labels())

    def test_splits_beside_the_file_that_is_named_are_said(self, tmp_path):
        for split, num in (("train", NUM), ("test", 6)):
            np.save(tmp_path / f"x_{split}.npy", images(num, seed=num))
            np.save(tmp_path / f"y_{split}.npy", labels(num))
        notes: list[str] = []
        config = DataConfig(source="numpy", path=str(tmp_path / "x_train.npy"))
        found = prepare_data(config, tmp_path / "cache", note=notes.append)
        assert rows(found) == expected(images(seed=NUM), labels())
        assert any("arrays that were passed over: x_test, y_test." in note for note in notes)

    def test_gaps(self, tmp_path):
        np.savez(tmp_path / "a.npz", images=images(), labels=np.array([0, 3, 10])[labels()])
        with pytest.raises(UserError, match="no training image has 1, 2, 4"):
            prepare("numpy", tmp_path / "a.npz", tmp_path / "cache")
        found = prepare("numpy", tmp_path / "a.npz", tmp_path / "cache", map_labels=True)
        assert found.classes == ("0", "3", "10")
        assert rows(found) == expected(images(), labels())

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"images": images()}, "images has no labels beside it"),
            ({"pixels": images()}, "no arrays of training images .there are: pixels"),
            ({"images": images(), "labels": labels(30)}, "36 images, but 30 labels"),
            ({"images": images(), "labels": np.eye(3)[labels()]}, r"labels of shape \[36, 3\]"),
            ({"images": images(), "labels": labels() + 0.5}, "image 0: the label 0.5 is not a who"),
            (
                {"images": images(), "labels": np.where(labels() == 2, np.nan, labels())},
                r"image 2: the label is missing \(NaN\) \(and 11 more",
            ),
            ({"images": images(), "labels": labels() + np.inf}, "image 0: the label inf is too"),
            (
                {"images": images(), "labels": labels().astype(np.uint64) + 2**63},
                "the label 9223372036854775808 is too large",
            ),
            ({"images": images(), "labels": labels() * 1j}, "labels of type complex128; expected"),
            (
                {"images": images(), "labels": np.array(["a", "b", "c"], object)[labels()]},
                r"labels: not a readable array \(its items are objects .* array\.astype\(str\)",
            ),
            ({"images": images(shape=(3, 6, 3)), "labels": labels()}, "two axes may be"),
            ({"images": images(shape=(4, 6, 5)), "labels": labels()}, "no axis is 1 or 3 long"),
            ({"images": images()[0], "labels": labels()}, "3 images, but 36 labels"),
            ({"images": images() - 300.0, "labels": labels()}, "from -300 to .*normalised"),
            ({"images": np.array([{}] * 36), "labels": labels()}, "not a readable array"),
        ],
    )
    def test_what_is_refused(self, tmp_path, arrays, message):
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(UserError, match=message):
            prepare("numpy", tmp_path / "a.npz", tmp_path / "cache")

    def test_no_archive(self, tmp_path):
        (tmp_path / "a.npz").write_bytes(b"nothing")
        with pytest.raises(UserError, match=r"not a readable \.npz file"):
            prepare("numpy", tmp_path / "a.npz", tmp_path / "cache")
        np.savez(tmp_path / "a.npz", images=images(), labels=labels())
        whole = (tmp_path / "a.npz").read_bytes()
        (tmp_path / "a.npz").write_bytes(whole[:300] + bytes(100) + whole[400:])
        with pytest.raises(UserError, match="not a readable"):
            prepare("numpy", tmp_path / "a.npz", tmp_path / "cache")


def test_objects_in_a_file_of_their_own(tmp_path):
    np.save(tmp_path / "images.npy", images())
    np.save(tmp_path / "labels.npy", np.array(["a", "b", "c"], object)[labels()])
    with pytest.raises(UserError, match=r"labels\.npy.* save names as text, array\.astype"):
        prepare("numpy", tmp_path, tmp_path / "cache")


def converted(channels: str = "auto", **splits: np.ndarray) -> tuple[dict, tuple[str, ...]]:
    arrays = {name: Arrays(array, labels(len(array)), name) for name, array in splits.items()}
    return to_images(arrays, channels, "here")


def test_values_are_scaled_and_said():
    pixels = images()
    for array, said in (
        (pixels / 255, "scaled to 0..255"),
        ((pixels / 255).astype(np.float32), "scaled to 0..255"),
        (pixels.astype(np.uint16) * 257, "scaled from 0..65535"),
        ((pixels.astype(np.uint16) * 257).astype(">u2"), "images are uint16 from 0 to 65535"),
        ((pixels / 255).astype(">f4"), "images are float32 from 0 to 1"),
        (pixels.astype(">i4"), ""),
        (pixels.astype(np.int64), ""),
        (pixels.astype(np.float64), ""),
        (np.where(pixels == 255, 1.0000001, pixels / 255 - 1e-7), "scaled to 0..255"),
    ):
        found, notes = converted(train=array)
        assert np.array_equal(found["train"], pixels)
        assert said in "".join(notes)
        assert bool(notes) == bool(said)


def test_arrays_of_several_pieces_are_converted_as_a_whole(monkeypatch: pytest.MonkeyPatch):
    pixels = images()
    assert len(pixels) % 7, "the last piece is smaller"
    monkeypatch.setattr("krscale.data.reading.arrays._CHUNK", 7)
    for array in (pixels / 255, pixels.astype(np.uint16) * 257, pixels.astype(np.int64)):
        assert np.array_equal(converted(train=array)[0]["train"], pixels)
    broken = pixels.astype(np.float32)
    broken[-1] += 0.5 - (pixels[-1] == 255)
    with pytest.raises(UserError, match="some with a fraction"):
        converted(train=broken)


@pytest.mark.parametrize("swapped", [False, True])
def test_the_scale_of_values_is_that_of_all_splits(swapped):
    pixels = images()
    names = ("test", "train") if swapped else ("train", "test")
    for bright, dark, shift in (
        (pixels.astype(np.uint16) * 257, pixels.astype(np.uint16) % 250, 8),
        (pixels.astype(np.float32), (pixels % 2).astype(np.float32), 0),
    ):
        found, notes = converted(**dict(zip(names, (bright, dark), strict=True)))
        assert np.array_equal(found[names[0]], pixels)
        assert np.array_equal(found[names[1]], dark.astype(np.int64) >> shift)
        assert len(notes) == bool(shift)


def test_splits_of_two_types_are_refused():
    for other in (images() / 255, images().astype(np.uint16), images().astype(np.int64)):
        with pytest.raises(UserError, match="splits differ in type: train uint8, test"):
            converted(train=images(), test=other)
    found, _ = converted(train=images().astype(">u2"), test=images().astype("<u2"))
    assert np.array_equal(found["test"], images())


def test_floats_that_are_no_pixels_are_refused_with_the_cause():
    pixels = images()
    with pytest.raises(UserError, match=r"some with a fraction, as scaling leaves them; .*rint"):
        converted(train=pixels * np.float32(0.99))
    for array in (pixels / 50, pixels / 127.5 - 1, pixels * 1.1, np.where(pixels > 9, np.nan, 1.0)):
        with pytest.raises(UserError, match=r"normalised already are not read"):
            converted(train=array)


@pytest.mark.parametrize("broken", ["train", "test"])
def test_missing_pixels_are_refused_in_every_split(broken: str) -> None:
    splits = {name: images(seed=seed) / 255 for seed, name in enumerate(("train", "test"))}
    splits[broken][-1, 0, 0, 0] = np.nan
    with pytest.raises(UserError, match="images are float64 from nan to nan"):
        converted(**splits)


def test_whole_numbers_up_to_one_are_said_to_be_dark():
    for kind in (np.uint8, np.int64, np.uint16):
        found, notes = converted(train=(images() % 2).astype(kind))
        assert np.array_equal(found["train"], images() % 2)
        assert "from 0 to 1: all are nearly black" in notes[0]
        assert not converted(train=(images() % 3).astype(kind))[1]
        assert not converted(train=(images() % 2).astype(kind), test=images().astype(kind))[1]


def test_sixteen_bits_that_hold_fewer_are_said_to_be_dark_as_in_files():
    pixels = images().astype(np.uint16)
    assert "None is brighter than" in converted(train=pixels * 15)[1][0]
    assert converted(train=pixels * 257)[1][0].endswith("to 0..255.")
    assert converted(train=pixels * 15, test=pixels * 257)[1][0].endswith("to 0..255.")


def test_a_label_that_train_lacks_is_answered_with_the_plain_name():
    pixels, names = images(), np.array(["ant", "bee"])
    parts = {
        split: Arrays(pixels, names[np.arange(len(pixels)) % 2], split)
        for split in ("train", "test")
    }
    parts["test"].labels[0] = "be"
    with pytest.raises(UserError, match=r"the label be is outside .* Did you mean 'bee'\?"):
        source_data(parts, DataConfig(source="numpy"), "here")


def test_channels_may_be_named():
    pixels = images(shape=(3, 6, 3))
    assert np.array_equal(converted("first", train=pixels)[0]["train"], pixels)
    found, _ = converted("last", train=pixels)
    assert np.array_equal(found["train"], np.moveaxis(pixels, 3, 1))


def idx(path: Path, array: np.ndarray) -> None:
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    content = head + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


class TestIdx:
    @pytest.mark.parametrize("end", ["", ".gz"])
    def test_the_files_of_mnist(self, tmp_path, end):
        train, test = images(shape=(6, 5)), images(9, seed=3, shape=(6, 5))
        idx(tmp_path / f"d/train-images-idx3-ubyte{end}", train)
        idx(tmp_path / f"d/train-labels-idx1-ubyte{end}", labels())
        idx(tmp_path / f"d/t10k-images-idx3-ubyte{end}", test)
        idx(tmp_path / f"d/t10k-labels-idx1-ubyte{end}", labels(9))
        found = prepare("idx", tmp_path / "d", tmp_path / "cache")
        assert found.image_shape == (1, 6, 5)
        assert rows(found, ("test",)) == expected(test, labels(9))
        assert rows(found, ("train", "val")) == expected(train, labels())

    @pytest.mark.parametrize(
        ("start", "inside", "form"),
        [("", "", "{}-images.idx3-ubyte {}-labels.idx1-ubyte"),
         ("", "", "{}-images-idx3.ubyte.gz {}-labels-idx1.ubyte.gz"),
         ("", "raw", "{}-images-idx3-ubyte {}-labels-idx1-ubyte"),
         ("emnist-mnist-", "", "{}-images-idx3-ubyte.gz {}-labels-idx1-ubyte.gz"),
         ("emnist-letters-", "raw", "{}-images-idx3-ubyte {}-labels-idx1-ubyte")],
    )  # fmt: skip
    def test_the_names_of_its_relatives_and_copies(self, tmp_path, start, inside, form):
        train, test = images(shape=(6, 5)), images(9, seed=3, shape=(6, 5))
        for split, pixels in (("train", train), ("test" if start else "t10k", test)):
            pictures, marks = form.format(start + split, start + split).split()
            idx(tmp_path / "d" / inside / pictures, pixels)
            idx(tmp_path / "d" / inside / marks, labels(len(pixels)))
        (tmp_path / "d" / inside / "._train-images-idx3-ubyte").write_bytes(b"macOS")
        assert guess_source(str(tmp_path / "d"))[0] == "data.source=idx"
        found = prepare("idx", tmp_path / "d", tmp_path / "cache")
        assert rows(found, ("test",)) == expected(test, labels(9))
        assert rows(found, ("train", "val")) == expected(train, labels())

    def test_of_several_data_sets_one_file_names_its_own(self, tmp_path):
        """EMNIST's archive holds six data sets; the labels of its letters start at 1."""
        for number, name in enumerate(("emnist-digits-", "emnist-letters-", "")):
            for seed, split in ((number, "train"), (9 + number, "test")):
                pixels = images(seed=seed, shape=(6, 5))
                idx(tmp_path / f"d/{name}{split}-images-idx3-ubyte", pixels)
                idx(tmp_path / f"d/{name}{split}-labels-idx1-ubyte", labels() + (number == 1))
        (tmp_path / "d/emnist-letters-mapping.txt").write_text("1 65 97\n2 66 98\n3 67 99\n")
        (tmp_path / "d/emnist-digits-mapping.txt").write_text("0 48\n1 49 \n2 50\n\n")
        one = "emnist-digits-train-images-idx3-ubyte, emnist-letters-train-images-idx3-ubyte, train"
        with pytest.raises(UserError, match=f"files of 3 data sets; name one file of yours: {one}"):
            prepare("idx", tmp_path / "d", tmp_path / "cache")
        chosen = tmp_path / "d/emnist-letters-test-labels-idx1-ubyte"
        assert guess_source(str(chosen))[0] == "data.source=idx"
        with pytest.raises(UserError, match=r"1 of 4 classes have no training image: 0\."):
            prepare("idx", chosen, tmp_path / "cache")
        found = prepare("idx", chosen, tmp_path / "cache", map_labels=True)
        assert found.classes == ("Aa", "Bb", "Cc")
        assert rows(found, ("test",)) == expected(images(seed=10, shape=(6, 5)), labels())
        found = prepare("idx", tmp_path / "d/train-images-idx3-ubyte", tmp_path / "cache")
        assert found.classes == ("0", "1", "2")
        assert rows(found, ("test",)) == expected(images(seed=11, shape=(6, 5)), labels())

    @pytest.mark.parametrize(
        "form",
        ["{}-images-idx3-ubyte.gz {}-labels-idx1-ubyte.gz",
         "{}-images.idx3-ubyte {}-labels.idx1-ubyte",
         "{}-images-idx3-ubyte {}-labels-idx1-ubyte"],
    )  # fmt: skip
    @pytest.mark.parametrize("number", [0, 1])
    def test_of_copies_that_are_written_otherwise_the_named_file_is_read(
        self, tmp_path, form, number
    ):
        for other in ("-{}{}-ubyte", "-{}{}-ubyte.gz", ".{}{}-ubyte"):
            for split in ("train", "t10k"):
                idx(tmp_path / f"d/{split}-images{other.format('idx', 3)}", images(seed=7))
                idx(tmp_path / f"d/{split}-labels{other.format('idx', 1)}", labels())
        train, test = images(shape=(6, 5)), images(9, seed=3, shape=(6, 5))
        for split, pixels in (("train", train), ("t10k", test)):
            pictures, marks = form.format(split, split).split()
            idx(tmp_path / "d" / pictures, pixels)
            idx(tmp_path / "d" / marks, labels(len(pixels)))
        named = tmp_path / "d" / form.format("t10k", "train").split()[number]
        found = prepare("idx", named, tmp_path / "cache")
        assert rows(found, ("test",)) == expected(test, labels(9))
        assert rows(found, ("train", "val")) == expected(train, labels())

    @pytest.mark.parametrize(
        "mapping",
        [
            "0 65\n0 66\n",
            "0 zero\n",
            "0 55296\n",
            "0 0\n",
            "0 99999999999\n",
            "nul\0",
            "\u00e9 1\n",
        ],
    )
    def test_a_damaged_mapping(self, tmp_path, mapping):
        for seed, split in enumerate(("train", "test")):
            idx(tmp_path / f"a-{split}-images-idx3-ubyte", images(seed=seed, shape=(6, 5)))
            idx(tmp_path / f"a-{split}-labels-idx1-ubyte", labels())
        (tmp_path / "a-mapping.txt").write_text(mapping)
        with pytest.raises(UserError, match=r"a-mapping\.txt: not lines of a label and codes"):
            prepare("idx", tmp_path, tmp_path / "cache")

    def test_a_packed_file_under_the_name_of_a_plain_one(self, tmp_path):
        idx(tmp_path / "train-images-idx3-ubyte", images(shape=(6, 5)))
        idx(tmp_path / "train-labels-idx1-ubyte", labels())
        file = tmp_path / "train-images-idx3-ubyte"
        file.write_bytes(gzip.compress(file.read_bytes()))
        with pytest.raises(UserError, match=r"packed by gzip; the name of such a file ends in"):
            prepare("idx", tmp_path, tmp_path / "cache")

    def test_another_file_is_none_of_a_data_set(self, tmp_path):
        (tmp_path / "notes.txt").write_text("")
        for path in (tmp_path / "notes.txt", tmp_path):
            with pytest.raises(UserError, match="no such files; expected a folder with train-imag"):
                prepare("idx", path, tmp_path / "cache")

    @pytest.mark.parametrize("start", ["", "emnist-letters-"])
    @pytest.mark.parametrize("word", ["dev", "eval", "Validation", "val_set"])
    def test_a_split_by_another_word_is_not_cut_anew(self, tmp_path, start, word):
        for seed, split in enumerate(("train", "test", word)):
            idx(tmp_path / f"{start}{split}-images-idx3-ubyte", images(seed=seed, shape=(6, 5)))
            idx(tmp_path / f"{start}{split}-labels-idx1-ubyte", labels())
        for path in (tmp_path, tmp_path / f"{start}train-images-idx3-ubyte"):
            with pytest.raises(UserError, match=f"{start}{word}-images-idx3-ubyte is named after"):
                prepare("idx", path, tmp_path / "cache")

    def test_files_beside_its_own_may_have_any_name_and_are_said(self, tmp_path):
        for seed, name in enumerate(("train", "test", "extra", "other-dev")):
            idx(tmp_path / f"{name}-images-idx3-ubyte", images(seed=seed, shape=(6, 5)))
            idx(tmp_path / f"{name}-labels-idx1-ubyte", labels())
        notes: list[str] = []
        config = DataConfig(source="idx", path=str(tmp_path))
        found = prepare_data(config, tmp_path / "cache", note=notes.append)
        assert found.num_samples["test"] == len(labels())
        of_extra = "extra-images-idx3-ubyte, extra-labels-idx1-ubyte, other-dev-images-idx3-ubyte"
        assert any(f"{tmp_path}: files that were passed over: {of_extra}" in note for note in notes)

    def test_a_split_of_links_to_nothing_is_not_cut_anew(self, tmp_path):
        idx(tmp_path / "train-images-idx3-ubyte", images(shape=(6, 5)))
        idx(tmp_path / "train-labels-idx1-ubyte", labels())
        for end in ("images-idx3-ubyte", "labels-idx1-ubyte"):
            (tmp_path / f"t10k-{end}").symlink_to("nowhere")
        with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte: cannot be read \(No such"):
            prepare("idx", tmp_path, tmp_path / "cache")

    def test_two_names_of_one_split(self, tmp_path):
        for name in ("train", "t10k", "test"):
            idx(tmp_path / f"{name}-images-idx3-ubyte", images(shape=(6, 5)))
            idx(tmp_path / f"{name}-labels-idx1-ubyte", labels())
        with pytest.raises(UserError, match="test and t10k are both named after the split test"):
            prepare("idx", tmp_path, tmp_path / "cache")

    @pytest.mark.parametrize(
        ("content", "message"),
        [(b"", "not an IDX file"), (b"\0\0\x08\x01\0\0\0\x05", "not an IDX file|1 axes"),
         (b"\0\0\x08\x03" + b"\0\0\0\x02" * 3 + b"1234567", "7 values, its head says"),
         (b"\x1f\x8b\0\0", "packed by gzip")],
    )  # fmt: skip
    def test_what_is_refused(self, tmp_path, content, message):
        idx(tmp_path / "d/train-labels-idx1-ubyte", labels())
        (tmp_path / "d/train-images-idx3-ubyte").write_bytes(content)
        with pytest.raises(UserError, match=message):
            prepare("idx", tmp_path / "d", tmp_path / "cache")
        (tmp_path / "d/train-images-idx3-ubyte").unlink()
        with pytest.raises(UserError, match="missing beside it"):
            prepare("idx", tmp_path / "d", tmp_path / "cache")


MODULE = """
import numpy as np

def pixels(num, seed):
    return np.random.default_rng(seed).integers(0, 256, (num, 3, 6, 5), dtype=np.uint8)

def two():
    return pixels(36, 0), np.arange(36) % 3

def three():
    return (*two(), ["ant", b"bee", "cat"])

def no_names():
    return (*two(), 3)

def splits():
    return {"train": two(), "test": (pixels(6, 9), [0, 1, 2, 0, 1, 2])}

def of_path(path):
    return pixels(36, int(path)), np.arange(36) % 3

def tensors():
    import torch
    return torch.from_numpy(pixels(36, 0)), torch.arange(36) % 3

def fails():
    raise RuntimeError("no disk")

nothing = lambda: 3
strange = lambda: {"trian": two()}
number = 3
"""


class TestFunction:
    @pytest.fixture(autouse=True)
    def module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        (tmp_path / "own_images.py").write_text(MODULE)
        (tmp_path / "broken_images.py").write_text("def")
        monkeypatch.syspath_prepend(tmp_path)
        yield
        for name in ("own_images", "broken_images"):
            sys.modules.pop(name, None)

    @pytest.mark.parametrize("name", ["two", "three", "tensors"])
    def test_images_and_labels(self, tmp_path, name):
        found = prepare(f"own_images:{name}", "", tmp_path / "cache")
        assert rows(found) == expected(images(), labels())
        assert found.classes == (("ant", "bee", "cat") if name == "three" else ("0", "1", "2"))

    def test_splits(self, tmp_path):
        found = prepare("own_images:splits", "", tmp_path / "cache")
        assert rows(found, ("test",)) == expected(images(6, seed=9), labels(6))

    def test_the_path_is_handed_over_and_content_is_what_counts(self, tmp_path):
        one = prepare("own_images:of_path", "1", tmp_path / "cache")
        two = prepare("own_images:of_path", "2", tmp_path / "cache")
        assert one.path != two.path
        assert one.fingerprint != two.fingerprint
        assert prepare("own_images:of_path", "1", tmp_path / "cache").path == one.path

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("own_images:tow", r"unknown callable of own_images 'tow'. Did you mean 'two'\?"),
            ("own_images:number", "unknown callable"),
            ("own_imagse:two", "cannot import 'own_imagse'"),
            ("broken_images:two", r"cannot import 'broken_images' \(SyntaxError"),
            ("own_images:fails", "it failed: RuntimeError: no disk"),
            ("own_images:nothing", "it returned int; expected .images, labels."),
            ("own_images:strange", "unknown split 'trian'. Did you mean 'train'"),
            ("own_images:of_path", "it failed: TypeError"),
            ("own_images:no_names", "class_names are int; expected a list of text"),
        ],
    )
    def test_what_is_refused(self, tmp_path, name, message):
        with pytest.raises(UserError, match=message):
            prepare(name, "", tmp_path / "cache")


def test_links_in_a_folder_of_idx_files(tmp_path):
    """A folder of links to the entries of another, and a file that git-annex has not fetched."""
    pixels, inside = images(shape=(6, 5)), tmp_path / "d"
    for name, array in (("train-images-idx3", pixels), ("train-labels-idx1", labels())):
        idx(inside / f"{name}-ubyte.gz", array)
        (inside / f"{name}-ubyte").symlink_to("nowhere")
        (tmp_path / "folder").mkdir(exist_ok=True)
        (inside / f"{name}.ubyte").symlink_to(tmp_path / "folder")
    found = prepare("idx", inside, tmp_path / "cache")
    assert sum(len(found.split(name).labels) for name in ("train", "val", "test")) == len(pixels)
    (inside / "t10k-images-idx3-ubyte").symlink_to("nowhere")
    with pytest.raises(UserError, match="t10k-images-idx3-ubyte"):
        prepare("idx", inside, tmp_path / "cache")


@pytest.mark.parametrize("name", ["", " ", "\u00a0"])
def test_the_name_of_a_class_is_not_blank(tmp_path: Path, name: str) -> None:
    file = tmp_path / "some.npz"
    np.savez(file, images=images(), labels=labels(), classes=np.array(["a", name, "c"]))
    with pytest.raises(UserError, match=r"some\.npz: the name of class 1 is empty"):
        prepare("numpy", file, tmp_path / "cache")
    np.savez(file, images=images(), labels=labels())
    with pytest.raises(UserError, match="the name of class 1 is empty"):
        prepare("numpy", file, tmp_path / "cache", classes=("a", name, "c"))
