"""No image is in two splits: copies stay together, or are refused if the user made the splits."""

from itertools import combinations

import numpy as np
import pytest

from krscale.config import DataConfig
from krscale.data import SPLITS, SourceData, Split, describe_data, prepare_data
from krscale.data.sources import registry as sources
from krscale.data.splits.duplicates import digests, groups_of_copies, shared_images
from krscale.data.stream import Stream
from krscale.errors import UserError

CLASSES = ("a", "b", "c")


def images_of(numbers) -> np.ndarray:
    """Return one image per number; equal numbers give equal pixels."""
    made = [np.random.default_rng(n).integers(0, 256, (1, 5, 4), dtype=np.uint8) for n in numbers]
    return np.stack(made)


def split_of(numbers) -> Split:
    return Split(images_of(numbers), np.arange(len(numbers), dtype=np.int64) % 3)


def as_stream(split: Split) -> Stream:
    def pieces():
        for start in range(0, len(split), 7):
            yield split.images[start : start + 7]

    return Stream(split.labels, split.image_shape, pieces)


@pytest.fixture
def prepare(monkeypatch, tmp_path):
    """Return a function that prepares given splits as a source and appends notes to `notes`."""

    def prepare(splits, *, published=False, places=None, notes=None, **config):
        class Made:
            own_splits = tuple(name for name in splits if name != "train")

            def __init__(self, config):
                pass

            def identity(self):
                return {}

            def describe(self):
                return None

            def read(self, report):
                return SourceData(CLASSES, splits, places or {}, (), published)

        monkeypatch.setitem(sources.SOURCES, "made", Made)
        data = DataConfig(source="made", **config)
        describe_data(data, tmp_path)
        return prepare_data(data, tmp_path, None, notes.append if notes is not None else None)

    return prepare


def pixels(dataset, name) -> list[bytes]:
    return [image.tobytes() for image in dataset.split(name).images]


COPIED = [*range(60), *range(0, 30), *range(0, 30, 2)]
"""105 images, 60 of them distinct: some appear twice, some three times."""


@pytest.mark.parametrize("form", [lambda split: split, as_stream], ids=["memory", "stream"])
def test_copies_stay_together_where_krscale_cuts(prepare, form):
    notes = []
    dataset = prepare({"train": form(split_of(COPIED))}, notes=notes)
    for one, other in combinations(SPLITS, 2):
        assert not set(pixels(dataset, one)) & set(pixels(dataset, other))
    everything = split_of(COPIED)
    expected = sorted(
        (i.tobytes(), int(n)) for i, n in zip(everything.images, everything.labels, strict=True)
    )
    found = [
        (image.tobytes(), int(label))
        for name in SPLITS
        for image, label in zip(dataset.split(name).images, dataset.split(name).labels, strict=True)
    ]
    assert sorted(found) == expected
    # Test has a quarter of the 60 distinct images, val a fifth of the other 45.
    different = {name: len(set(pixels(dataset, name))) for name in SPLITS}
    assert different == {"train": 36, "val": 9, "test": 15}
    assert len(notes) == 1
    # The last 15 images show number 2k with class k mod 3, which equals 2k mod 3 for every third k.
    assert "copies of others, pixel by pixel: 45 (" in notes[0]


def test_memory_and_stream_are_cut_alike(prepare, tmp_path, monkeypatch):
    first = prepare({"train": split_of(COPIED)})
    held = {name: (first.path / f"{name}.arrow").read_bytes() for name in SPLITS}
    first.path.rename(tmp_path / "elsewhere")
    monkeypatch.setattr("krscale.data.reading.decoding.PIECE_BYTES", 8 * 20)  # eight images at once
    second = prepare({"train": as_stream(split_of(COPIED))})
    assert {name: (second.path / f"{name}.arrow").read_bytes() for name in SPLITS} == held


def test_copies_make_another_data_set_than_older_cuts_did(prepare, tmp_path):
    whole = prepare({"train": split_of(range(60))})
    assert whole.path.name == f"made-{whole.fingerprint}"
    whole.path.rename(tmp_path / "elsewhere")
    copied = prepare({"train": split_of(COPIED)})
    assert copied.path == whole.path
    assert copied.fingerprint != whole.fingerprint


def test_copies_of_another_class_are_said(prepare):
    notes = []
    prepare({"train": split_of([*range(60), *range(1, 31)])}, notes=notes)
    assert "pixel by pixel: 30 (30 of them with another class)" in notes[0]


def test_a_class_of_one_image_and_its_copies_is_refused(prepare):
    numbers = list(range(60))
    numbers[0::3] = [7] * 20  # every image of the first class is a copy of an image of the second
    with pytest.raises(UserError, match=r"'[ab]' has .* different|'a' has 1;.*allow_duplicates"):
        prepare({"train": split_of(numbers)})


@pytest.mark.parametrize("form", [lambda split: split, as_stream], ids=["memory", "stream"])
def test_splits_of_the_users_own_may_not_share_images(prepare, form):
    splits = {"train": form(split_of(range(60))), "test": form(split_of([100, 101, 30, 31, 5]))}
    places = {"train": lambda n: f"train/{n}.png", "test": lambda n: f"test/{n}.png"}
    with pytest.raises(UserError, match="pixel by pixel: 3: ") as caught:
        prepare(splits, places=places)
    message = str(caught.value)
    assert "train/30.png (" in message
    assert "= test/2.png (test)" in message
    assert "data.allow_duplicates = true" in message


def test_shared_images_may_be_allowed(prepare):
    splits = {"train": split_of(range(60)), "test": split_of([100, 101, 30, 31, 5])}
    notes = []
    allowed = prepare(splits, allow_duplicates=True, notes=notes)
    assert allowed.num_samples["test"] == 5
    assert any("also in train" in note for note in notes)
    with pytest.raises(UserError, match="in two splits"):  # the allowed data set is not reused
        prepare(splits)


def test_copies_may_be_cut_apart_if_allowed(prepare):
    apart = prepare({"train": split_of(COPIED)}, allow_duplicates=True)
    shared = set(pixels(apart, "train")) & set(pixels(apart, "test"))
    assert shared
    assert apart.num_samples == {"train": 62, "val": 16, "test": 27}


def test_splits_that_others_published_are_taken_as_they_are(prepare):
    notes = []
    splits = {"train": split_of(range(60)), "test": split_of([100, 101, 30, 31, 5])}
    dataset = prepare(splits, published=True, notes=notes)
    assert pixels(dataset, "test") == [i.tobytes() for i in splits["test"].images]
    assert any("images of test that are also in" in note for note in notes)


def test_a_class_that_a_split_of_the_source_lacks_is_said(prepare):
    notes = []
    prepare({"train": split_of(range(60)), "test": split_of([100, 101])}, notes=notes)
    assert notes == ["made: test has no image of 1 of 3 classes: c."]


def test_notes_are_said_once(prepare):
    notes = []
    splits = {"train": split_of(range(60)), "test": split_of([100, 101])}
    prepare(splits, notes=notes)
    prepare(splits, notes=notes)
    assert len(notes) == 1


def test_digests_tell_pixels_apart():
    images = images_of([0, 1, 0, 2])
    found = digests(images)
    assert groups_of_copies(found).tolist() == [0, 1, 0, 3]
    turned = np.ascontiguousarray(images.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)
    assert (digests(turned) == found).all(), "the order in memory is no part of an image"
    images[3, 0, 4, 3] ^= 1
    assert digests(images)[3] != found[3]


def test_shared_images_by_pair():
    found = shared_images(
        {
            name: digests(images_of(n))
            for name, n in (("train", [3, 4, 5]), ("val", [9, 4]), ("test", [8]))
        }
    )
    assert [(s.names, s.first.tolist(), s.second.tolist()) for s in found] == [
        (("train", "val"), [1], [1])
    ]
