"""Images that a table lists, and images that `save_to_disk` wrote."""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from krscale.config import DataConfig, FilesConfig
from krscale.data import SPLITS, Dataset, prepare_data
from krscale.data.sources.guessing import guess_source
from krscale.errors import UserError

NUM, CLASSES = 36, ("ant", "bee", "cat")


def images(num: int = NUM, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, 3, 6, 5), dtype=np.uint8)


def encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def prepare(source: str, path: Path, cache: Path, **files: Any) -> Dataset:
    mapped = files.pop("map_labels", False)
    config = DataConfig(
        source=source, path=str(path), files=FilesConfig(**files), map_labels=mapped
    )
    return prepare_data(config, cache)


def rows(dataset: Dataset, names: tuple[str, ...] = SPLITS) -> list[tuple[bytes, str]]:
    return sorted(
        (image.tobytes(), dataset.classes[label])
        for name in names
        for image, label in zip(dataset.split(name).images, dataset.split(name).labels, strict=True)
    )


def expected(pixels: np.ndarray, names: list[str]) -> list[tuple[bytes, str]]:
    return sorted((i.tobytes(), n) for i, n in zip(pixels, names, strict=True))


NAMES = [CLASSES[n % 3] for n in range(NUM)]


def listed_and_skipped(source: str, path: Path, cache: Path, where: str) -> None:
    """Check that row 0, without an image, and row 20, a damaged one, are treated alike."""
    with pytest.raises(UserError, match=rf"2 images cannot be read: .*{where}: no image \(null"):
        prepare(source, path, cache)
    config = DataConfig(source=source, path=str(path), skip_unreadable=True)
    kept = [n for n in range(NUM) if n not in (0, 20)]
    assert rows(prepare_data(config, cache)) == expected(images()[kept], [NAMES[n] for n in kept])


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Image files that are not in class folders."""
    (tmp_path / "data/scans").mkdir(parents=True)
    for number, pixels in enumerate(images()):
        (tmp_path / f"data/scans/{number:02}.png").write_bytes(encode(pixels))
    return [f"scans/{number:02}.png" for number in range(NUM)]


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def with_column(folder: Path, files: Sequence[str], name: str, words: Sequence[str]) -> Path:
    """Write a list with one more column, which repeats these words in turn."""
    lines = map(",".join, zip(files, NAMES, cycle(words), strict=False))
    return write(folder / "data/list.csv", f"path,label,{name}", *lines)


class TestList:
    def test_paths_and_labels(self, tmp_path, files):
        lines = (f"{file},{name}" for file, name in zip(files, NAMES, strict=True))
        path = write(tmp_path / "data/list.csv", "path,label", *lines)
        found = prepare("image_list", path, tmp_path / "cache")
        assert rows(found) == expected(images(), NAMES)
        assert found.classes == CLASSES
        listed = (found.path / "splits.csv").read_text().splitlines()
        assert len(listed) == NUM + 1
        assert {line.split(",")[0] for line in listed[1:]} == set(files)

    def test_other_columns_absolute_paths_and_numbers(self, tmp_path, files):
        lines = (f"{n % 3}\t{tmp_path}/data/{file}" for n, file in enumerate(files))
        path = write(tmp_path / "list.tsv", "species\tfile", *lines)
        columns = {"path_column": "file", "label_column": "species"}
        found = prepare("image_list", path, tmp_path / "cache", **columns)
        assert found.classes == ("0", "1", "2")
        assert rows(found) == expected(images(), [str(n % 3) for n in range(NUM)])
        with pytest.raises(UserError, match=r"path_column: unknown column 'path'"):
            prepare("image_list", path, tmp_path / "cache")

    def test_its_splits(self, tmp_path, files):
        splits = ["Training" if n < 27 else "test" for n in range(NUM)]
        table = {"path": files, "label": NAMES, "split": splits}
        pq.write_table(pa.table(table), tmp_path / "data/list.parquet")
        found = prepare("image_list", tmp_path / "data/list.parquet", tmp_path / "cache")
        assert rows(found, ("test",)) == expected(images()[27:], NAMES[27:])
        assert rows(found, ("train", "val")) == expected(images()[:27], NAMES[:27])

    @pytest.mark.parametrize("name", ["Split", "subset", "my column"])
    def test_splits_in_a_column_that_is_not_read(self, tmp_path, files, name):
        """Otherwise new splits would be cut silently, and the user's test images trained on."""
        splits = ["Train" if n < 27 else "test" for n in range(NUM)]
        lines = (f"{f},{label},{s}" for f, label, s in zip(files, NAMES, splits, strict=True))
        path = write(tmp_path / "data/list.csv", f"path,label,{name}", *lines)
        with pytest.raises(UserError, match=rf"column '{name}' holds .*split_column = '{name}'"):
            prepare("image_list", path, tmp_path / "cache")
        found = prepare("image_list", path, tmp_path / "cache", split_column=name)
        assert rows(found, ("test",)) == expected(images()[27:], NAMES[27:])

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("Usage", ("Training", "PublicTest", "PrivateTest")),
            ("Split", ("train", "dev", "test")),
            ("Split", ("train", "test", "")),
            ("phase", ("train_set", "hold-out", "other")),
            ("fold", ("train", "eval", "")),
        ],
    )
    def test_splits_of_which_some_are_not_known(self, tmp_path, files, name, words):
        """An earlier version accepted the column if it held one unknown word."""
        path = with_column(tmp_path, files, name, words)
        with pytest.raises(UserError, match=rf"column '{name}' holds names of splits"):
            prepare("image_list", path, tmp_path / "cache")

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("kind", ("train", "bus", "test")),
            ("Split", ("train", "bus", "car")),
            ("Usage", ("a", "dev", "test")),
        ],
    )
    def test_columns_of_other_words(self, tmp_path, files, name, words):
        path = with_column(tmp_path, files, name, words)
        assert prepare("image_list", path, tmp_path / "cache").classes == CLASSES

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("is_valid", ("True", "False")),
            ("isTrain", ("1", "0")),
            ("is_training_image", ("1", "0", "")),
            ("IS_TEST", ("yes", "no")),
        ],
    )
    def test_a_column_that_says_of_each_row_whether_it_is_of_a_split(
        self, tmp_path, files, name, words
    ):
        path = with_column(tmp_path, files, name, words)
        with pytest.raises(UserError, match=rf"column '{name}' says of each row whether it is of"):
            prepare("image_list", path, tmp_path / "cache")

    @pytest.mark.parametrize(
        ("name", "words"),
        [("is_valid", ("1", "1")), ("valid", ("1", "0")), ("train", ("1", "0")), ("is_red", "10")],
    )
    def test_other_columns_of_numbers(self, tmp_path, files, name, words):
        path = with_column(tmp_path, files, name, words)
        assert prepare("image_list", path, tmp_path / "cache").classes == CLASSES

    def test_classes_that_are_called_train_and_test(self, tmp_path, files):
        lines = (f"{file},{('train', 'test')[n % 2]},5" for n, file in enumerate(files))
        path = write(tmp_path / "data/list.csv", "path,label,fold", *lines)
        assert prepare("image_list", path, tmp_path / "cache").classes == ("test", "train")

    def test_whole_numbers_that_are_written_as_floats(self, tmp_path, files):
        lines = (f"{file},{n % 3}.0" for n, file in enumerate(files))
        path = write(tmp_path / "data/list.csv", "path,label", *lines)
        found = prepare("image_list", path, tmp_path / "cache", classes=CLASSES)
        assert rows(found) == expected(images(), NAMES)
        given = prepare("image_list", path, tmp_path / "cache", classes=("2.0", "1.0", "0.0"))
        assert rows(given) == expected(images(), [f"{n % 3}.0" for n in range(NUM)])
        versions = (f"{file},{('1.0', '1.5')[n % 2]}" for n, file in enumerate(files))
        path = write(tmp_path / "data/other.csv", "path,label", *versions)
        assert prepare("image_list", path, tmp_path / "cache").classes == ("1.0", "1.5")

    def test_text_that_looks_like_numbers_or_nothing_stays_text(self, tmp_path, files):
        names = ["01", "NA", "null"]
        lines = (f"{file},{names[n % 3]}" for n, file in enumerate(files))
        path = write(tmp_path / "data/list.csv", "path,label", *lines)
        assert prepare("image_list", path, tmp_path / "cache").classes == ("01", "NA", "null")

    def test_columns_that_are_not_read_may_be_there_twice(self, tmp_path, files):
        lines = (f"{file},{name},,1" for file, name in zip(files, NAMES, strict=True))
        path = write(tmp_path / "data/list.csv", "path,label,,", *lines)
        assert rows(prepare("image_list", path, tmp_path / "cache")) == expected(images(), NAMES)

    def test_gaps(self, tmp_path, files):
        lines = (f"{file},{(0, 2, 10)[n % 3]}" for n, file in enumerate(files))
        path = write(tmp_path / "data/list.csv", "path,label", *lines)
        with pytest.raises(UserError, match=r"row 3: .*no training image has 1, 3"):
            prepare("image_list", path, tmp_path / "cache")
        assert prepare("image_list", path, tmp_path / "cache", map_labels=True).classes == (
            "0", "2", "10",
        )  # fmt: skip

    def test_files_that_are_not_there_are_named_together(self, tmp_path, files):
        lines = [f"{file},{name}" for file, name in zip(files, NAMES, strict=True)]
        for number in (4, 20):
            (tmp_path / "data" / files[number]).unlink()
        path = write(tmp_path / "data/list.csv", "path,label", *lines)
        with pytest.raises(UserError, match="2 images cannot be read") as caught:
            prepare("image_list", path, tmp_path / "cache")
        assert all(files[number] in str(caught.value) for number in (4, 20))
        (tmp_path / "data" / files[4]).write_bytes(encode(images()[4]))
        with pytest.raises(UserError, match="1 image cannot be read"):
            prepare("image_list", path, tmp_path / "cache")

    def test_a_row_without_a_path_is_listed_or_skipped(self, tmp_path, files):
        (tmp_path / "data" / files[20]).write_bytes(b"nothing")
        lines = [f"{file},{name}" for file, name in zip(["", *files[1:]], NAMES, strict=True)]
        path = write(tmp_path / "data/list.csv", "path,label", *lines)
        listed_and_skipped("image_list", path, tmp_path / "cache", "column 'path': row 1")

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            (["path,label,split", "scans/00.png,ant,trian"], r"row 1: .*'trian'. Did you mean"),
            (["path,label,split", "scans/00.png,ant,test"], "no row of the split train"),
            (["path,label", ",ant"], r"column 'path': row 1: no image \(null\), nor is any other"),
            (["path,label", "scans/00.png,"], "the label '' is empty"),
            (["path,label", "scans/00.png,ant,more"], "not a readable list"),
            (["path,label"], "no training images"),
            (["path,path,label", "scans/00.png,b,ant"], "2 columns are named 'path'"),
            (["path,label,label", "scans/00.png,b,ant"], "2 columns are named 'label'"),
            ([""], "not a readable list"),
            (["path;label", "scans/00.png;ant"], "its columns are separated by ';'; a .csv has"),
            (["path\tlabel", "scans/00.png\tant"], r"separated by '\\t'; a .csv has commas"),
        ],
    )
    def test_what_is_refused(self, tmp_path, files, lines, message):
        path = write(tmp_path / "data/list.csv", *lines)
        with pytest.raises(UserError, match=message):
            prepare("image_list", path, tmp_path / "cache")


def save(
    folder: Path,
    pixels: np.ndarray,
    labels: list[int],
    paths: Sequence[str] = (),
    content: Sequence[Any] = (),
    splits: Sequence[str] = (),
    **columns: str,
) -> None:
    """Write what `save_to_disk` writes, in two files; images with paths are stored as paths."""
    rows = [{"bytes": None, "path": path} for path in paths] or content
    rows = rows or [{"bytes": encode(p), "path": None} for p in pixels]
    image, label = columns.get("image", "image"), columns.get("label", "label")
    folder.mkdir(parents=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    names, half = [], len(pixels) // 2
    for number, part in enumerate((slice(0, half), slice(half, None))):
        table = pa.table({image: pa.array(rows[part], kind), label: pa.array(labels[part])})
        if splits:
            table = table.append_column("split", pa.array(splits[part]))
        names.append(f"data-{number:05}-of-00002.arrow")
        path = str(folder / names[-1])
        with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=5)
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    features = {image: {"_type": "Image"}, label: {"names": CLASSES, "_type": "ClassLabel"}}
    if splits:
        features["split"] = {"dtype": "string", "_type": "Value"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))


LABELS = [n % 3 for n in range(NUM)]


class TestHfDisk:
    @pytest.mark.parametrize("columns", [{}, {"image": "img", "label": "fine_label"}])
    def test_a_dataset(self, tmp_path, columns):
        save(tmp_path / "d", images(), LABELS, **columns)
        found = prepare("hf_disk", tmp_path / "d", tmp_path / "cache")
        assert rows(found) == expected(images(), NAMES)
        assert found.classes == CLASSES

    def test_a_column_of_splits(self, tmp_path):
        splits = ["train" if n < 27 else "test" for n in range(NUM)]
        save(tmp_path / "d", images(), LABELS, splits=splits)
        with pytest.raises(UserError, match=r"column 'split' holds names of splits .*DatasetDict"):
            prepare("hf_disk", tmp_path / "d", tmp_path / "cache")
        save(tmp_path / "e", images(), LABELS, splits=["train"] * NUM)
        assert rows(prepare("hf_disk", tmp_path / "e", tmp_path / "cache")) == expected(
            images(), NAMES
        )

    def test_classes_without_an_image(self, tmp_path):
        save(tmp_path / "d", images(), [2 * (n % 2) for n in range(NUM)])
        with pytest.raises(UserError, match=r"1 of 3 classes have no training image: bee\. data"):
            prepare("hf_disk", tmp_path / "d", tmp_path / "cache")
        found = prepare("hf_disk", tmp_path / "d", tmp_path / "cache", map_labels=True)
        assert found.classes == ("ant", "cat")
        assert rows(found) == expected(images(), [("ant", "cat")[n % 2] for n in range(NUM)])

    def test_a_dictionary_of_splits(self, tmp_path):
        for name, seed in (("train", 0), ("validation", 1), ("unsupervised", 2)):
            save(tmp_path / "d" / name, images(seed=seed), LABELS)
        names = {"splits": ["train", "validation", "unsupervised"]}
        (tmp_path / "d/dataset_dict.json").write_text(json.dumps(names))
        notes: list[str] = []
        config = DataConfig(source="hf_disk", path=str(tmp_path / "d"))
        found = prepare_data(config, tmp_path / "cache", None, notes.append)
        assert rows(found, ("val",)) == expected(images(seed=1), NAMES)
        assert rows(found, ("train", "test")) == expected(images(), NAMES)
        assert any("passed over: unsupervised" in note for note in notes)

    def test_splits_that_were_encoded_apart(self, tmp_path):
        """After class_encode_column, each split numbers only the class names that it has itself."""
        for name, seed in (("train", 0), ("test", 1)):
            save(tmp_path / "d" / name, images(seed=seed), LABELS)
        (tmp_path / "d/dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
        before = prepare("hf_disk", tmp_path / "d", tmp_path / "cache")
        file = tmp_path / "d/test/dataset_info.json"
        info = json.loads(file.read_text())
        info["features"]["label"]["names"] = CLASSES[::-1]
        file.write_text(json.dumps(info))
        found = prepare("hf_disk", tmp_path / "d", tmp_path / "cache")
        assert rows(found, ("test",)) == expected(
            images(seed=1), [CLASSES[::-1][number] for number in LABELS]
        )
        assert found.path != before.path

    def test_images_outside_are_part_of_the_data(self, tmp_path, files):
        save(tmp_path / "d", images(), LABELS, paths=[str(tmp_path / "data" / f) for f in files])
        found = prepare("hf_disk", tmp_path / "d", tmp_path / "cache")
        assert rows(found) == expected(images(), NAMES)
        for file, pixels in zip(files, images(seed=5), strict=True):
            (tmp_path / "data" / file).write_bytes(encode(pixels))
            os.utime(tmp_path / "data" / file, (1, 1))
        found = prepare("hf_disk", tmp_path / "d", tmp_path / "cache")
        assert rows(found) == expected(images(seed=5), NAMES)
        (tmp_path / "data" / files[3]).unlink()
        with pytest.raises(UserError, match="1 image cannot be read"):
            prepare("hf_disk", tmp_path / "d", tmp_path / "cache")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ('{"splits": ["train", "val", "Validation"]}', "val and Validation are both named"),
            ("[]", "dataset_dict.json: it does not list splits"),
            ("{}", "it does not list splits"),
            ('{"splits": "train"}', "it does not list splits"),
            ('{"splits": [3]}', "it does not list splits"),
            ('{"splits": ["val"]}', "no split named train"),
            ('{"splits": ["train", "dev"]}', "dev is named after the split val, but by a word"),
        ],
    )
    def test_splits_that_are_refused(self, tmp_path, content, message):
        for name in ("train", "val", "Validation"):
            save(tmp_path / "d" / name, images(), LABELS)
        (tmp_path / "d/dataset_dict.json").write_text(content)
        with pytest.raises(UserError, match=message):
            prepare("hf_disk", tmp_path / "d", tmp_path / "cache")

    @pytest.mark.parametrize("name", ["../d/data.arrow", "/etc/passwd", "a/data.arrow", ""])
    def test_files_of_other_folders(self, tmp_path, name):
        save(tmp_path / "d", images(), LABELS)
        state = {"_data_files": [{"filename": name}], "_split": None}
        (tmp_path / "d/state.json").write_text(json.dumps(state))
        with pytest.raises(UserError, match="is not a file of this folder"):
            prepare("hf_disk", tmp_path / "d", tmp_path / "cache")

    def test_values_that_begin_outside_of_the_file(self, tmp_path):
        """Arrow does not check the offsets in a file, and such a read ends the process."""
        save(tmp_path / "d", images(), LABELS)
        file = tmp_path / "d/data-00000-of-00002.arrow"
        content = file.read_bytes()
        first = len(encode(images()[0]))
        place = content.find(struct.pack("<ii", 0, first))
        assert place > 0
        forged = struct.pack("<ii", 0, 2**30)
        file.write_bytes(content[:place] + forged + content[place + len(forged) :])
        with pytest.raises(UserError, match=r"00002\.arrow: column image: damaged"):
            prepare("hf_disk", tmp_path / "d", tmp_path / "cache")

    @pytest.mark.parametrize("file", ["state.json", "dataset_info.json"])
    @pytest.mark.parametrize(
        "content", ["[]", "3", '{"_data_files": 3, "features": 3}', '{"_data_files": [3]}', "{}"]
    )
    def test_records_of_something_else(self, tmp_path, file, content):
        save(tmp_path / "d", images(), LABELS)
        (tmp_path / "d" / file).write_text(content)
        with pytest.raises(UserError, match="not a folder that save_to_disk has written"):
            prepare("hf_disk", tmp_path / "d", tmp_path / "cache")

    @pytest.mark.parametrize("row", [None, {"bytes": None, "path": None}])
    def test_a_row_without_an_image_is_listed_or_skipped(self, tmp_path, row):
        content = [{"bytes": encode(pixels), "path": None} for pixels in images()]
        content[0], content[20] = row, {"bytes": b"nothing", "path": None}
        save(tmp_path / "d", images(), LABELS, content=content)
        listed_and_skipped("hf_disk", tmp_path / "d", tmp_path / "cache", "row 0")

    def test_a_split_without_the_column(self, tmp_path):
        save(tmp_path / "d/train", images(), LABELS)
        save(tmp_path / "d/test", images(seed=1), LABELS, image="img")
        (tmp_path / "d/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
        with pytest.raises(UserError, match=r"00000-of-00002.arrow: unknown column 'image'"):
            prepare("hf_disk", tmp_path / "d", tmp_path / "cache")

    def test_what_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="not a folder that save_to_disk has written"):
            prepare("hf_disk", tmp_path, tmp_path / "cache")
        save(tmp_path / "d", images(), [-1, *LABELS[1:]])
        with pytest.raises(UserError, match="row 0: the label -1: images without a label"):
            prepare("hf_disk", tmp_path / "d", tmp_path / "cache")
        (tmp_path / "d/state.json").write_text("{")
        with pytest.raises(UserError, match=r"state\.json: cannot be read"):
            prepare("hf_disk", tmp_path / "d", tmp_path / "cache")
        save(tmp_path / "e", images(), LABELS)
        state = json.loads((tmp_path / "e/state.json").read_text())
        state["_indices_files"] = [{"filename": "indices.arrow"}]
        (tmp_path / "e/state.json").write_text(json.dumps(state))
        with pytest.raises(UserError, match="flatten_indices"):
            prepare("hf_disk", tmp_path / "e", tmp_path / "cache")
        (tmp_path / "e/state.json").write_text("[" * 100_000)
        with pytest.raises(UserError, match=r"state\.json: cannot be read"):
            prepare("hf_disk", tmp_path / "e", tmp_path / "cache")
        save(tmp_path / "f", images(), LABELS)
        with pytest.raises(UserError, match=r"unknown column 'lable'. Did you mean 'label'"):
            prepare("hf_disk", tmp_path / "f", tmp_path / "cache", label_column="lable")
        (tmp_path / "f/data-00001-of-00002.arrow").write_bytes(b"nothing")
        with pytest.raises(UserError, match="not a readable Arrow file"):
            prepare("hf_disk", tmp_path / "f", tmp_path / "cache")


def test_names_of_classes_in_a_parquet_file(tmp_path):
    table = pa.table({"image": [encode(image) for image in images()], "label": LABELS})
    features = {"label": {"names": CLASSES, "_type": "ClassLabel"}}
    info = json.dumps({"info": {"features": features}})
    pq.write_table(table.replace_schema_metadata({"huggingface": info}), tmp_path / "a.parquet")
    found = prepare("parquet", tmp_path / "a.parquet", tmp_path / "cache")
    assert found.classes == CLASSES
    assert rows(found) == expected(images(), NAMES)
    given = prepare("parquet", tmp_path / "a.parquet", tmp_path / "cache", classes=("x", "y", "z"))
    assert given.classes == ("x", "y", "z")


@pytest.mark.parametrize(
    ("names", "source"),
    [
        (["ant/0.png"], "image_folder"),
        (["train/ant/0.png"], "image_folder"),
        (["a.parquet"], "parquet"),
        (["train/a.parquet"], "parquet"),
        (["README.md", "default/train/0000.parquet"], "parquet"),
        (["state.json"], "hf_disk"),
        (["dataset_dict.json"], "hf_disk"),
        (["images.npy"], "numpy"),
        (["train-images-idx3-ubyte.gz"], "idx"),
        (["data_batch_1", "batches.meta"], "cifar10"),
        (["list.csv", "ant/0.png"], "image_folder"),
        (["mean.npy", "ant/0.png"], "image_folder"),
        (["mean.npy", "0.png"], "image_folder"),
        (["mean.npy"], "numpy"),
        (["x_train.npy", "figures/0.png"], "numpy"),
        (["cifar-10-python.tar.gz"], "cifar10"),
        (["cifar-100-python/train"], "cifar100"),
        (["cifar-10-png/train/ant/0.png", "more/0.png"], "image_folder"),
    ],
)
def test_a_source_is_told_by_what_is_there(tmp_path, names, source):
    for name in names:
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(b"")
    assert guess_source(str(tmp_path / "d"))[0] == f"data.source={source}"


@pytest.mark.parametrize(
    ("name", "source"),
    [("a.csv", "image_list"), ("a.npz", "numpy"), ("a.parquet", "parquet"),
     ("cifar-10-python.tar.gz", "cifar10"), ("cifar-100-binary.tar.gz", "cifar100")],
)  # fmt: skip
def test_a_source_is_told_by_its_name(tmp_path, name, source):
    (tmp_path / name).write_bytes(b"")
    assert guess_source(str(tmp_path / name))[0] == f"data.source={source}"


def test_a_list_in_another_encoding(tmp_path):
    (tmp_path / "list.csv").write_bytes("path,label\na.png,ant\n".encode("utf-16"))
    with pytest.raises(UserError, match="it is UTF-16; save it as UTF-8"):
        prepare("image_list", tmp_path / "list.csv", tmp_path / "cache")


def test_what_is_only_called_after_cifar(tmp_path):
    for name in ("cifar-10-png/train/ant/0.png", "cifar-100-list.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for name, source in (("cifar-10-png", "image_folder"), ("cifar-100-list.csv", "image_list")):
        assert guess_source(str(tmp_path / name))[0] == f"data.source={source}"


@pytest.mark.parametrize(
    ("columns", "source"),
    [(["path", "label"], "image_list"), (["path", "image", "label"], "parquet"),
     (["path", "img", "label"], "parquet")],
)  # fmt: skip
def test_a_list_in_a_parquet_file(tmp_path, columns, source):
    values = {name: [b"a" if name == "img" else "a"] for name in columns}
    pq.write_table(pa.table(values), tmp_path / "list.parquet")
    assert guess_source(str(tmp_path / "list.parquet"))[0] == f"data.source={source}"


def test_a_file_that_no_source_reads(tmp_path):
    for name in ("list.txt", "meta.jsonl", "sheet.xlsx", "none"):
        (tmp_path / name).write_bytes(b"path,label")
        with pytest.raises(UserError, match="no source reads such a file by itself"):
            guess_source(str(tmp_path / name))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"pipe: cannot be read \(it is a named pipe, a socket"):
        guess_source(str(tmp_path / "pipe"))
    (tmp_path / "part-0").write_bytes(b"PAR1")
    assert guess_source(str(tmp_path / "part-0"))[0] == "data.source=parquet"


def test_a_list_larger_than_any_is_not_read(tmp_path):
    (tmp_path / "list.csv").touch()
    os.truncate(tmp_path / "list.csv", 10**12)
    with pytest.raises(UserError, match=r"a list of paths and labels has at most"):
        prepare("image_list", tmp_path / "list.csv", tmp_path / "cache")


def test_no_source_is_guessed(tmp_path):
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(UserError, match="link: a link to gone, which is not there, and no source"):
        guess_source(str(tmp_path / "link"))
    assert guess_source("glyphs") == ["data.source=glyphs"]
    assert guess_source("my.module:images") == ["data.source=my.module:images"]
    with pytest.raises(UserError, match="no such file or folder, and no source"):
        guess_source(str(tmp_path / "nothing"))
