"""Image files in a folder per class."""

import os
import shutil
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from krscale.config import DataConfig, FilesConfig
from krscale.data import SPLITS, describe_data, prepare_data
from krscale.data.check import check_data
from krscale.data.reading import decoding
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


def test_copies_in_hidden_folders_are_no_images(tmp_path):
    expected = fill(tmp_path / "data", num_images=30)
    clean = prepare(tmp_path / "data", tmp_path / "cache")
    for hidden in ("ant/.ipynb_checkpoints", "bee/.cache/deep", "cat/@eaDir", "__MACOSX/ant"):
        shutil.copytree(tmp_path / "data/ant", tmp_path / "data" / hidden)
    (tmp_path / "data/ant/._00.png").write_bytes(b"not an image")
    (tmp_path / "data/readme.md").write_text("not an image")
    shutil.copy(tmp_path / "data/ant/00.png", tmp_path / "data/stray.png")
    notes = []
    settings = DataConfig(source="image_folder", path=str(tmp_path / "data"))
    assert prepare_data(settings, tmp_path / "cache").path == clean.path
    dataset = prepare_data(settings, tmp_path / "other", None, notes.append)
    assert sum(dataset.num_samples.values()) == 90
    assert rows(dataset) == expected
    assert len(notes) == 1
    assert "folders and files: 5 (" in notes[0]
    assert "other types: 1 (.md 1)" in notes[0]
    assert "outside the folders of classes: 1 (stray.png 1)" in notes[0]
    assert describe_data(settings, tmp_path / "nothing").notes == tuple(notes)


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux only")
def test_names_of_files_need_not_be_text(tmp_path):
    expected = fill(tmp_path / "data")
    (tmp_path / "data/ant/03.png").rename(
        os.fsdecode(os.fsencode(tmp_path / "data/ant") + b"/caf\xe9.png")
    )
    assert rows(prepare(tmp_path / "data", tmp_path / "cache")) == expected
    (tmp_path / "data/ant/00.png").unlink()
    path = os.fsencode(tmp_path / "data/ant") + b"/caf\xe9.png"
    Path(os.fsdecode(path)).write_bytes(b"text")
    with pytest.raises(UserError, match=r"caf\\udce9\.png: not a readable image") as caught:
        prepare(tmp_path / "data", tmp_path / "cache")
    str(caught.value).encode()


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux only")
def test_names_of_classes_must_be_text(tmp_path):
    fill(tmp_path / "data")
    (tmp_path / "data/ant").rename(os.fsdecode(os.fsencode(tmp_path / "data") + b"/caf\xe9"))
    with pytest.raises(UserError, match=r"caf\\udce9: the name of a class is not UTF-8"):
        prepare(tmp_path / "data", tmp_path / "cache")


@pytest.mark.timeout(30)
def test_what_is_no_file_does_not_hang(tmp_path):
    fill(tmp_path / "data")
    os.mkfifo(tmp_path / "data/bee/pipe.png")
    (tmp_path / "data/cat/gone.png").symlink_to("nowhere.png")
    with pytest.raises(UserError, match="2 of 38 data files are not regular files"):
        prepare(tmp_path / "data", tmp_path / "cache")


@pytest.mark.timeout(60)
def test_what_is_no_file_is_passed_over_where_that_is_set(tmp_path):
    expected = fill(tmp_path / "data")
    os.mkfifo(tmp_path / "data/bee/pipe.png")
    (tmp_path / "data/cat/gone.png").symlink_to("nowhere.png")
    (tmp_path / "data/cat/zero.png").symlink_to("/dev/zero")
    (tmp_path / "data/cat" / os.fsdecode(b"caf\xe9.png")).symlink_to("nowhere")
    for name, target in (("up", ".."), ("self", "self"), ("here", "."), ("gone", "nowhere")):
        (tmp_path / "data" / name).symlink_to(target)
        (tmp_path / "data/bee" / name).symlink_to(target)
    found = check_data(
        DataConfig(source="image_folder", path=str(tmp_path / "data"), skip_unreadable=True)
    )
    assert found.num_images == len(expected)
    (note,) = found.notes
    assert "links to folders: 4 (" in note
    assert "data files that are no regular files: 6 (" in note
    assert "a link to nothing 4" in note
    assert "a device 2" in note


@pytest.mark.parametrize("name", ["ant", "test", "v1.5"])
def test_a_class_or_split_that_is_a_link_to_nothing_is_refused(tmp_path, name):
    """As where the disk of a class is not mounted: it would be no class, without an error."""
    fill(tmp_path / "data" / ("train" if name == "test" else ""))
    shutil.rmtree(tmp_path / "data" / name, ignore_errors=True)
    (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere" / name)
    message = rf"1 of \d+ data files are not regular files; .*data/{name}: a link to nothing"
    with pytest.raises(UserError, match=message):
        prepare(tmp_path / "data", tmp_path / "cache")
    config = DataConfig(source="image_folder", path=str(tmp_path / "data"), skip_unreadable=True)
    assert "a link to nothing 1" in check_data(config).notes[0]


def test_a_link_to_nothing_of_another_type_is_passed_over(tmp_path):
    """As of files that git-annex has not fetched."""
    expected = fill(tmp_path / "data")
    (tmp_path / "data/README.md").symlink_to(".git/annex/nowhere")
    assert rows(prepare(tmp_path / "data", tmp_path / "cache")) == expected


def test_a_class_whose_files_cannot_be_opened_does_not_vanish(tmp_path):
    fill(tmp_path / "data")
    for path in (tmp_path / "data/ant").iterdir():
        path.unlink()
        path.symlink_to("nowhere.png")
    for skipped, message in (
        (False, "12 of 36 data files are not regular files"),
        (True, r"data/ant: no image in this class .*; none of its 12 can be opened"),
    ):
        config = DataConfig(
            source="image_folder", path=str(tmp_path / "data"), skip_unreadable=skipped
        )
        with pytest.raises(UserError, match=message):
            prepare_data(config, tmp_path / "cache")


def test_images_may_be_links(tmp_path):
    expected = fill(tmp_path / "elsewhere")
    for path in (tmp_path / "elsewhere").rglob("*.png"):
        link = tmp_path / "data" / path.relative_to(tmp_path / "elsewhere")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    assert rows(prepare(tmp_path / "data", tmp_path / "cache")) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux only")
def test_classes_that_look_alike_are_refused(tmp_path):
    names = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    fill(tmp_path / "data", classes=(*names, "tea"))
    with pytest.raises(UserError, match=r"'caf\\xe9' looks like the class 'cafe\\u0301'"):
        prepare(tmp_path / "data", tmp_path / "cache")


def test_a_class_in_another_unicode_form_is_explained(tmp_path):
    names = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    fill(tmp_path / "data/train", classes=(names[0], "tea"))
    fill(tmp_path / "data/test", classes=(names[1], "tea"), seed=5000)
    with pytest.raises(UserError, match=r"label 'cafe\\u0301' .*mean 'caf\\xe9'"):
        prepare(tmp_path / "data", tmp_path / "cache")


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux only")
def test_classes_that_differ_in_case_are_said(tmp_path):
    fill(tmp_path / "data", classes=("Cat", "cat", "dog"))
    notes = []
    settings = DataConfig(source="image_folder", path=str(tmp_path / "data"))
    assert prepare_data(settings, tmp_path / "c", None, notes.append).classes == (
        "Cat", "cat", "dog",
    )  # fmt: skip
    assert len(notes) == 1
    assert "differ in case only: Cat / cat" in notes[0]


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("training", "testing")])
def test_splits_in_other_words(tmp_path, train, test):
    fill(tmp_path / "data" / train)
    expected = fill(tmp_path / "data" / test, num_images=3, seed=5000)
    dataset = prepare(tmp_path / "data", tmp_path / "cache")
    assert dataset.classes == CLASSES
    assert rows(dataset, ("test",)) == expected


def test_two_folders_of_one_split_are_refused(tmp_path):
    for number, name in enumerate(("train", "val", "validation")):
        fill(tmp_path / "data" / name, seed=5000 * number)
    with pytest.raises(UserError, match="val and validation are both named after the split val"):
        prepare(tmp_path / "data", tmp_path / "cache")


@pytest.mark.parametrize("place", ["..dots", "..dots/x", "..dots/x/y"])
def test_a_hidden_class_is_said_at_every_depth(tmp_path, place):
    fill(tmp_path / "data")
    fill(tmp_path / "data" / place, num_images=4, classes=("",), seed=5000)
    notes = []
    settings = DataConfig(source="image_folder", path=str(tmp_path / "data"))
    prepare_data(settings, tmp_path / "cache", None, notes.append)
    assert any("a dot: '..dots' (4)" in note for note in notes)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train", "test", "unlabelled"), r"\(test, train\), but unlabelled is not: move it out"),
        (("Train", "val", "a", "b"), r"\(val\), but Train, a, b are not: move them out"),
        (("training", "Testing", "rest"), "but rest is not"),
        (("train", "Testing"), "but Testing is not"),
        (("train", "test1"), "but test1 is not"),
        (("val", "test"), r"\(test, val\), but none is named train; name all"),
    ],
)
def test_splits_beside_other_folders_are_no_classes(tmp_path, names, message):
    for number, name in enumerate(names):
        fill(tmp_path / "data" / name, seed=5000 * number)
    with pytest.raises(UserError, match=message):
        prepare(tmp_path / "data", tmp_path / "cache")


@pytest.mark.parametrize(
    "names",
    [("seg_train", "seg_test"), ("training_set", "test_set"), ("Final_Training", "Final_Test"),
     ("trainImages", "valImages", "more"), ("asl-train", "asl-test", "readme"),
     ("trainset", "testset"), ("train2017", "val2017"), ("my_train_1", "my_train_2", "my_test_1"),
     ("train", "dev"), ("Training", "PublicTest", "PrivateTest"), ("train", "hold-out")],
)  # fmt: skip
@pytest.mark.parametrize("deeper", ["", "again"])
def test_splits_by_longer_names_are_no_classes(tmp_path, names, deeper):
    """Archives use such names; seg_test and seg_train would silently become two classes."""
    for number, name in enumerate(names):
        fill(tmp_path / "data" / name / deeper, seed=5000 * number)
    with pytest.raises(UserError, match="are named after splits and hold folders: as they stand"):
        prepare(tmp_path / "data", tmp_path / "cache")


@pytest.mark.parametrize("strayed", [("train",), ("test",), ("train", "test")])
def test_stray_images_make_no_classes_of_splits(tmp_path, strayed):
    for number, name in enumerate(("train", "test")):
        fill(tmp_path / "data" / f"seg_{name}", seed=5000 * number)
        if name in strayed:
            fill(tmp_path / "data" / f"seg_{name}", 3, ("",), seed=9000 + 100 * number)
    with pytest.raises(UserError, match="seg_test and seg_train are named after splits and hold"):
        prepare(tmp_path / "data", tmp_path / "cache")


def test_classes_named_like_splits_may_hold_folders_beside_their_images(tmp_path):
    for number, name in enumerate(("toy_train", "toy_test")):
        for inside, num_images in (("", 20), ("details", 5)):
            seed = 5000 * number + 1000 * len(inside)
            fill(tmp_path / "data" / name, num_images, (inside,), seed)
    assert prepare(tmp_path / "data", tmp_path / "cache").classes == ("toy_test", "toy_train")


@pytest.mark.parametrize(
    "names",
    [("bullet_train", "test_tube"), ("train", "car"), ("train", "bus", "car"),
     ("a_train", "a_pred"), ("test", "train_x")],
)  # fmt: skip
@pytest.mark.parametrize("inside", ["", "images", "images/a"])
def test_classes_whose_names_hold_such_words(tmp_path, names, inside):
    for number, name in enumerate(names):
        fill(tmp_path / "data" / name / inside, classes=("",), num_images=20, seed=5000 * number)
    assert prepare(tmp_path / "data", tmp_path / "cache").classes == tuple(sorted(names))


@pytest.mark.parametrize(
    ("names", "flat"),
    [(("train", "test", "sample"), "test"), (("train", "dev"), "dev"),
     (("seg_train", "seg_test"), "seg_test")],
)  # fmt: skip
def test_images_without_labels_beside_a_split_are_no_class(tmp_path, names, flat):
    """Such folders exist where the labels of the test images are not published."""
    for number, name in enumerate(names):
        classes = ("",) if name == flat else CLASSES
        fill(tmp_path / "data" / name, classes=classes, seed=5000 * number)
    with pytest.raises(UserError, match=f"but only .*train has folders of classes, and {flat} has"):
        prepare(tmp_path / "data", tmp_path / "cache")


def test_classes_that_are_called_like_splits_may_hold_images(tmp_path):
    for number, name in enumerate(("toy_train", "toy_test")):
        fill(tmp_path / "data" / name, classes=("",), num_images=20, seed=5000 * number)
    assert prepare(tmp_path / "data", tmp_path / "cache").classes == ("toy_test", "toy_train")


@pytest.mark.parametrize(
    "names",
    [("train", "test"), ("Training", "validation"), ("my_train", "my_test"), ("train", "test1")],
)
def test_splits_below_classes_are_not_cut_anew(tmp_path, names):
    for number, name in enumerate(names):
        for label in ("ant", "bee"):
            fill(tmp_path / "data" / label / name, classes=("",), seed=5000 * number)
    with pytest.raises(UserError, match=r"ant: its images are in folders named after splits \("):
        prepare(tmp_path / "data", tmp_path / "cache")


@pytest.mark.parametrize("place", ["all", "all/images", "all/images/each"])
def test_a_folder_around_the_classes_is_named(tmp_path, place):
    fill(tmp_path / "data" / place)
    with pytest.raises(UserError, match=rf"If these are the classes, give .*{place} as data.path"):
        prepare(tmp_path / "data", tmp_path / "cache")
    expected = prepare(tmp_path / "data" / place, tmp_path / "cache").classes
    assert expected == CLASSES
    fill(tmp_path / "split/train" / place)
    fill(tmp_path / "split/test" / place, seed=5000)
    with pytest.raises(UserError, match=r"are the classes, move them into .*split/train\."):
        prepare(tmp_path / "split", tmp_path / "cache")


@pytest.mark.parametrize("place", ["", "train"])
def test_a_list_beside_images_is_pointed_at(tmp_path, place):
    fill(tmp_path / "data" / place, classes=("",))
    (tmp_path / "data/train.csv").write_text("id,label\n")
    with pytest.raises(UserError, match=r"no folder of a class in it.*'image_list' .* that \.csv"):
        prepare(tmp_path / "data", tmp_path / "cache")


@pytest.mark.parametrize(
    ("places", "said"),
    [(("photo/{}", "sketch/{}"), True), (("amazon/images/{}", "dslr/images/{}"), True),
     (("n01/images/{}", "n02/{}"), True), (("n01/images", "n02/images"), False),
     (("{}/left", "{}/right"), True), (("{}",), False)],
)  # fmt: skip
def test_folders_that_may_be_the_classes_are_said(tmp_path, places, said):
    for number, place in enumerate(places):
        for label, name in enumerate(CLASSES):
            seed = 1000 * number + 100 * label
            fill(tmp_path / "data" / place.format(name), 9, ("",), seed=seed)
    notes = []
    settings = DataConfig(source="image_folder", path=str(tmp_path / "data"))
    prepare_data(settings, tmp_path / "cache", None, notes.append)
    assert any("hold folders of the same names" in note for note in notes) == said


def test_one_class_alone_is_refused_as_that(tmp_path):
    fill(tmp_path / "data", classes=("jpg",))
    with pytest.raises(UserError, match="at least two classes are needed"):
        prepare(tmp_path / "data", tmp_path / "cache")


def test_an_image_in_two_splits_is_named(tmp_path):
    fill(tmp_path / "data/train")
    fill(tmp_path / "data/test", num_images=3, seed=5000)
    shutil.copy(tmp_path / "data/train/bee/04.png", tmp_path / "data/test/bee/again.png")
    message = r"pixel by pixel: 1: train/bee/04\.png \((train|val)\) = test/bee/again\.png \(test\)"
    with pytest.raises(UserError, match=message):
        prepare(tmp_path / "data", tmp_path / "cache")
    assert list((tmp_path / "cache").rglob("*.arrow")) == []
