"""Images in Parquet files: read unchanged, or refused with their file and row."""

import io
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from krscale.config import DataConfig, FilesConfig
from krscale.data import SPLITS, describe_data, prepare_data
from krscale.data.reading import decoding
from krscale.errors import UserError

NUM_IMAGES, SHAPE = 48, (3, 6, 5)


def encode(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    """Encode `[C, H, W]`."""
    array = pixels.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(buffer, kind, **options)
    return buffer.getvalue()


def make_images(num_images: int = NUM_IMAGES, shape=SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_images, *shape), dtype=np.uint8)


def write(path: Path, images, labels, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": images, "label": labels, "other": labels}), path, **options)


def config(path: Path, **files) -> DataConfig:
    return DataConfig(source="parquet", path=str(path), files=FilesConfig(**files))


def prepare(path: Path, cache: Path, **files):
    return prepare_data(config(path, **files), cache)


def rows(dataset) -> list[tuple[bytes, int]]:
    return sorted(
        (image.tobytes(), int(label))
        for name in SPLITS
        for image, label in zip(dataset.split(name).images, dataset.split(name).labels, strict=True)
    )


def expected(images, labels) -> list[tuple[bytes, int]]:
    return sorted((i.tobytes(), int(n)) for i, n in zip(images, labels, strict=True))


@pytest.fixture
def images():
    return make_images()


@pytest.fixture
def labels():
    return np.arange(NUM_IMAGES) % 3


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    """Split each file into several pieces, so that places in later pieces are tested too."""
    monkeypatch.setattr(decoding, "PIECE_BYTES", 7 * int(np.prod(SHAPE)))


def test_encoded_images_come_back_as_they_are(tmp_path, images, labels):
    path = tmp_path / "data.parquet"
    write(path, [encode(i) for i in images], labels, row_group_size=10)
    dataset = prepare(path, tmp_path / "cache")
    assert rows(dataset) == expected(images, labels)
    assert dataset.image_shape == SHAPE
    assert dataset.classes == ("0", "1", "2")
    assert dataset.num_samples == {"train": 28, "val": 8, "test": 12}
    for name in SPLITS:
        split = dataset.split(name)
        assert np.ptp(np.bincount(split.labels)) <= 1
        assert not split.images.flags.writeable
    train = dataset.split("train").images / 255
    assert dataset.mean == pytest.approx(train.mean((0, 2, 3)))
    assert dataset.std == pytest.approx(train.std((0, 2, 3)))


def test_the_cut_is_that_of_the_same_images_in_memory(tmp_path, images, labels, monkeypatch):
    from krscale.data import SOURCES, SourceData, Split

    path = tmp_path / "data.parquet"
    write(path, [encode(i) for i in images], labels)
    streamed = prepare(path, tmp_path / "cache")

    class InMemory:
        own_splits = ()

        def __init__(self, config):
            pass

        def identity(self):
            return {}

        def read(self, report):
            split = Split(images, labels.astype(np.int64))
            return SourceData(("0", "1", "2"), {"train": split})

    monkeypatch.setitem(SOURCES, "in_memory", InMemory)
    held = prepare_data(DataConfig(source="in_memory"), tmp_path / "cache")
    for name in SPLITS:
        files = [dataset.path / f"{name}.arrow" for dataset in (streamed, held)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_raw_pixels(tmp_path, images, labels):
    path = tmp_path / "data.parquet"
    raw = pa.array([i.tobytes() for i in images], pa.binary(int(np.prod(SHAPE))))
    write(path, raw, labels, row_group_size=11)
    dataset = prepare(path, tmp_path / "cache", raw_shape=SHAPE)
    assert rows(dataset) == expected(images, labels)


def test_images_as_hugging_face_keeps_them(tmp_path, images, labels):
    path = tmp_path / "data.parquet"
    write(path, [{"bytes": encode(i), "path": None} for i in images], labels)
    assert rows(prepare(path, tmp_path / "cache")) == expected(images, labels)


@pytest.mark.parametrize("kind", [pa.string(), pa.dictionary(pa.int32(), pa.string())])
def test_labels_may_be_names(tmp_path, images, labels, kind):
    path = tmp_path / "data.parquet"
    names = np.array(["cat", "ant", "bee"], dtype=object)[labels]
    write(path, [encode(i) for i in images], pa.array(names, pa.string()).cast(kind))
    dataset = prepare(path, tmp_path / "cache")
    assert dataset.classes == ("ant", "bee", "cat")
    assert rows(dataset) == expected(images, np.array([2, 0, 1])[labels])
    given = prepare(path, tmp_path / "cache", classes=("cat", "ant", "bee"))
    assert rows(given) == expected(images, labels)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "uint32", "uint64", "dictionary", "float64"])
def test_labels_of_any_whole_type(tmp_path, images, labels, kind):
    if kind == "dictionary":
        values = pa.DictionaryArray.from_arrays(
            labels.astype(np.uint8), pa.array([0, 1, 2], pa.uint8())
        )
    else:
        values = pa.array(labels.astype(kind))
    write(tmp_path / "data.parquet", [encode(i) for i in images], values)
    dataset = prepare(tmp_path / "data.parquet", tmp_path / "cache")
    assert dataset.classes == ("0", "1", "2")
    assert rows(dataset) == expected(images, labels)


def test_folders_that_are_no_data(tmp_path, images, labels):
    encoded = [encode(i) for i in images]
    write(tmp_path / "data/kind=a/part-0.parquet", encoded[:20], labels[:20])
    write(tmp_path / "data/_kind=b/part-0.parquet", encoded[20:], labels[20:])
    for name in ("_temporary/0", ".ipynb_checkpoints", "_delta_log", "kind=a/.cache", "__MACOSX"):
        write(tmp_path / f"data/{name}/part-0.parquet", encoded, labels)
    (tmp_path / "data/_SUCCESS").touch()
    (tmp_path / "data/kind=a/.part-0.parquet.crc").touch()
    notes = []
    dataset = prepare_data(config(tmp_path / "data"), tmp_path / "cache", None, notes.append)
    assert rows(dataset) == expected(images, labels)
    assert len(notes) == 1
    assert "folders and files: 6 (" in notes[0]


def test_folders_that_spark_names_as_files(tmp_path, images, labels):
    encoded = [encode(i) for i in images]
    write(tmp_path / "data/train.parquet/part-0.parquet", encoded[:36], labels[:36])
    write(tmp_path / "data/test.parquet/part-0.parquet", encoded[36:], labels[36:])
    dataset = prepare(tmp_path / "data", tmp_path / "cache")
    assert np.array_equal(dataset.split("test").images, images[36:])


def test_names_of_splits_in_another_case(tmp_path, images, labels):
    encoded = [encode(i) for i in images]
    write(tmp_path / "data/Train-0.parquet", encoded[:36], labels[:36])
    write(tmp_path / "data/Test-0.parquet", encoded[36:], labels[36:])
    dataset = prepare(tmp_path / "data", tmp_path / "cache")
    assert np.array_equal(dataset.split("test").images, images[36:])
    write(tmp_path / "data/more.parquet", [encode(i) for i in make_images(3, seed=1)], labels[:3])
    with pytest.raises(UserError, match=r"named after splits \(Test-0.parquet, Train-0.parquet\)"):
        prepare(tmp_path / "data", tmp_path / "cache")


def test_other_columns_and_grey(tmp_path, labels):
    path = tmp_path / "data.parquet"
    images = make_images(shape=(1, 6, 5))
    table = {"picture": [encode(i) for i in images], "kind": labels}
    pq.write_table(pa.table(table), path)
    names = {"image_column": "picture", "label_column": "kind"}
    grey = prepare(path, tmp_path / "cache", num_channels=1, **names)
    assert rows(grey) == expected(images, labels)
    rgb = prepare(path, tmp_path / "cache", **names)
    assert rows(rgb) == expected(images.repeat(3, axis=1), labels)


def test_jpeg_is_what_pillow_decodes(tmp_path, images, labels):
    path = tmp_path / "data.parquet"
    encoded = [encode(i, "JPEG", quality=60) for i in images]
    write(path, encoded, labels)
    decoded = [np.array(Image.open(io.BytesIO(e))).transpose(2, 0, 1) for e in encoded]
    assert rows(prepare(path, tmp_path / "cache")) == expected(np.stack(decoded), labels)


def test_sizes_may_differ_when_a_size_is_given(tmp_path, labels):
    path = tmp_path / "data.parquet"
    sizes = [(3, 4 + n % 5, 8 - n % 3) for n in range(NUM_IMAGES)]
    flat = [np.broadcast_to(np.uint8([[[n]], [[2 * n]], [[9]]]), s) for n, s in enumerate(sizes)]
    write(path, [encode(np.ascontiguousarray(i)) for i in flat], labels)
    dataset = prepare(path, tmp_path / "cache", image_size=6)
    assert dataset.image_shape == (3, 6, 6)
    assert rows(dataset) == expected(
        [np.broadcast_to(i[:, :1, :1], (3, 6, 6)) for i in flat], labels
    )


@pytest.mark.parametrize(
    "names",
    [
        {"train": "train-00000-of-2.parquet", "test": "test-0.parquet"},
        {"train": "train/a.parquet", "test": "test/a.parquet"},
        {"train": "data/train.parquet", "test": "data/test.parquet", "val": "data/valid.parquet"},
        {"train": "train.parquet", "val": "validation-x.parquet"},
    ],
)
def test_files_named_after_splits_are_these_splits(tmp_path, images, labels, names):
    folder = tmp_path / "data"
    for start, (_, name) in enumerate(sorted(names.items())):
        part = slice(12 * start, 12 * start + 12)
        write(folder / name, [encode(i) for i in images[part]], labels[part])
    dataset = prepare(folder, tmp_path / "cache")
    for start, (split, _) in enumerate(sorted(names.items())):
        if split != "train":
            found = dataset.split(split).images
            assert np.array_equal(found, images[12 * start : 12 * start + 12])
    assert sum(dataset.num_samples.values()) == 12 * len(names)


@pytest.mark.parametrize(
    "names",
    [("mnist_train", "mnist_test"), ("a-train", "a-validation"), ("x/my_train/0", "x/my_test/0"),
     ("mnistTrain", "mnistTest"), ("a-train-00000-of-00002", "a-test-00000-of-00001"),
     ("a-train-00001-of-00002", "a-test"), ("train_images/part", "test_images/part")],
)  # fmt: skip
def test_splits_by_another_word_than_the_first_are_not_put_together(
    tmp_path, images, labels, names
):
    for part, name in enumerate(names):
        rows = slice(24 * part, 24 * part + 24)
        write(tmp_path / f"d/{name}.parquet", [encode(i) for i in images[rows]], labels[rows])
    with pytest.raises(UserError, match="but not all, or not by their first word; as they"):
        prepare(tmp_path / "d", tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "values", "refused"),
    [("split", ["train", "test"], True), ("Subset", [" Train", "VALIDATION"], True),
     ("split", ["train", "train"], False), ("split", ["train", "other"], False),
     ("split", ["train", None], False),
         ("split", ["train", "dev", "test", None], True), ("split", [0, 1], False),
     ("note", ["train", "test"], False)],
)  # fmt: skip
@pytest.mark.parametrize("coded", [False, True])
def test_a_column_of_splits_is_not_passed_over(
    tmp_path, images, labels, name, values, refused, coded
):
    column = pa.array((values * 24)[:NUM_IMAGES])
    table = pa.table({"image": [encode(image) for image in images], "label": labels,
                      name: column.dictionary_encode() if coded else column})  # fmt: skip
    pq.write_table(table, tmp_path / "data.parquet", row_group_size=10)
    if refused:
        with pytest.raises(UserError, match=rf"column '{name}' holds names of splits \([dtT]"):
            prepare(tmp_path / "data.parquet", tmp_path / "cache")
    else:
        assert len(rows(prepare(tmp_path / "data.parquet", tmp_path / "cache"))) == NUM_IMAGES


def test_several_files_are_one_set_in_order_of_their_names(tmp_path, images, labels):
    for number, start in enumerate((0, 20, 20, 31)):
        stop = (20, 20, 31, 48)[number]
        part = [encode(i) for i in images[start:stop]]
        write(tmp_path / "data" / f"{number}.parquet", pa.array(part, pa.binary()),
              labels[start:stop])  # fmt: skip
    assert rows(prepare(tmp_path / "data", tmp_path / "cache")) == expected(images, labels)


def test_prepared_once_and_again_when_a_file_changes(tmp_path, images, labels):
    path = tmp_path / "data.parquet"
    write(path, [encode(i) for i in images], labels)
    first = prepare(path, tmp_path / "cache")
    stamp = (first.path / "train.arrow").stat().st_mtime_ns
    assert prepare(path, tmp_path / "cache") == first
    assert (first.path / "train.arrow").stat().st_mtime_ns == stamp
    write(path, [encode(255 - i) for i in images], labels)
    assert prepare(path, tmp_path / "cache").path != first.path


def test_described_without_decoding_more_than_one(tmp_path, images, labels, monkeypatch):
    path = tmp_path / "data.parquet"
    write(path, [encode(images[0]), *[b"not an image"] * (NUM_IMAGES - 1)], labels)
    found = describe_data(config(path), tmp_path / "cache")
    assert (found.num_classes, found.image_shape, found.num_train) == (3, SHAPE, 28)
    assert not (tmp_path / "cache").exists()


def test_progress_counts_images(tmp_path, images, labels):
    path = tmp_path / "data.parquet"
    write(path, [encode(i) for i in images], labels)
    steps = []
    prepare_data(config(path), tmp_path / "cache", lambda *step: steps.append(step))
    assert steps[-1] == (NUM_IMAGES, NUM_IMAGES)
    assert [done for done, _ in steps] == [7, 14, 21, 28, 35, 42, 48]


class TestRefused:
    def refused(self, path, tmp_path, message, **files):
        with pytest.raises(UserError, match=message):
            prepare(path, tmp_path / "cache", **files)
        left = (tmp_path / "cache").rglob("*")
        assert [p.name for p in left if p.suffix in (".arrow", ".pixels", ".json")] == []

    def test_one_unreadable_image_by_file_and_row(self, tmp_path, images, labels):
        encoded = [encode(i) for i in images]
        encoded[33] = encoded[33][:60]
        for number in range(2):
            part = slice(24 * number, 24 * number + 24)
            write(tmp_path / f"data/{number}.parquet", encoded[part], labels[part])
        message = r"data/1\.parquet: column 'image': row 9: not a readable image \("
        self.refused(tmp_path / "data", tmp_path, message)

    def test_a_missing_image(self, tmp_path, images, labels):
        encoded = [encode(i) for i in images]
        encoded[12], encoded[13] = None, b"nothing"
        path = tmp_path / "data.parquet"
        write(path, encoded, labels)
        self.refused(path, tmp_path, r"2 images .* row 12: no image \(null\); .*row 13: not a rea")
        config = DataConfig(source="parquet", path=str(path), skip_unreadable=True)
        found = prepare_data(config, tmp_path / "cache")
        assert sum(found.num_samples.values()) == len(images) - 2

    def test_two_columns_of_one_name(self, tmp_path, images, labels):
        encoded = [encode(i) for i in images]
        table = pa.table([encoded, labels, labels[::-1]], names=["image", "label", "label"])
        pq.write_table(table, tmp_path / "data.parquet")
        self.refused(tmp_path / "data.parquet", tmp_path, "2 columns are named 'label'")

    def test_mixed_sizes(self, tmp_path, images, labels):
        encoded = [encode(i) for i in images]
        encoded[20] = encode(images[20][:, 1:])
        write(tmp_path / "data.parquet", encoded, labels)
        message = r"row 20: 5x5 pixels, where the first image has 6x5.*data\.files\.image_size"
        self.refused(tmp_path / "data.parquet", tmp_path, message)

    def test_more_than_sixteen_bits(self, tmp_path, images, labels):
        buffer = io.BytesIO()
        Image.fromarray(np.full((6, 5), 70, np.int32)).save(buffer, "TIFF")
        write(tmp_path / "data.parquet", [buffer.getvalue()] * NUM_IMAGES, labels)
        message = r"row 0: not a readable image \(32 bits a channel"
        self.refused(tmp_path / "data.parquet", tmp_path, message)

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ({"image_column": "imag"}, r"image_column: unknown column 'imag'.*mean 'image'"),
            ({"label_column": "lable"}, r"label_column: unknown column 'lable'.*mean 'label'"),
            ({"image_column": "label"}, r"image_column: of type int64; allowed: binary"),
            ({"label_column": "image"}, r"label_column: of type binary; allowed: whole numbers"),
            ({"raw_shape": SHAPE}, r"raw_shape is set, but the column is of type binary"),
        ],
    )
    def test_columns(self, tmp_path, images, labels, names, message):
        write(tmp_path / "data.parquet", [encode(i) for i in images], labels)
        self.refused(tmp_path / "data.parquet", tmp_path, message, **names)

    @pytest.mark.parametrize("shape", [(), (3, 5, 5), (90,)])
    def test_raw_pixels_of_another_shape(self, tmp_path, images, labels, shape):
        raw = pa.array([i.tobytes() for i in images], pa.binary(90))
        write(tmp_path / "data.parquet", raw, labels)
        message = r"data\.files\.raw_shape: column 'image' holds 90 bytes"
        self.refused(tmp_path / "data.parquet", tmp_path, message, raw_shape=shape)

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ((6, 5, 3), r"\[6, 5, 3\]: images of 6 channels; 1 .* Did you mean \[3, 6, 5\]\?"),
            ((90, 1, 1), r"images of 90 channels; .* Did you mean \[1, 90, 1\]\?"),
            ((2, 5, 9), r"images of 2 channels; 1 \(grey\) or 3 are read, channel by channel\.$"),
        ],
    )
    def test_raw_pixels_of_other_channels(self, tmp_path, images, labels, shape, message):
        raw = pa.array([i.tobytes() for i in images], pa.binary(90))
        write(tmp_path / "data.parquet", raw, labels)
        self.refused(tmp_path / "data.parquet", tmp_path, message, raw_shape=shape)

    @pytest.mark.parametrize(
        ("value", "classes", "message"),
        [
            (-1, (), r"row 30: the label -1 is outside the 3 classes \(numbers 0\.\.2\): 0, 1, 2"),
            (3, ("a", "b", "c"), r"row 30: the label 3 is outside the 3 classes"),
            (70_000, (), r"row 30: the label 70000 would make more than 65536 classes"),
            (
                9,
                (),
                r"row 30: labels are numbers up to 9, but no training image has 3, 4, 5, 6",
            ),
        ],
    )
    def test_labels_outside_the_classes(self, tmp_path, images, labels, value, classes, message):
        labels[30] = value
        write(tmp_path / "data.parquet", [encode(i) for i in images], labels)
        self.refused(tmp_path / "data.parquet", tmp_path, message, classes=classes)

    def test_names_outside_the_classes(self, tmp_path, images, labels):
        names = np.array(["cat", "ant", "bee"], dtype=object)[labels]
        names[[5, 8]] = "beee"
        write(tmp_path / "data.parquet", [encode(i) for i in images], pa.array(names))
        message = r"row 5: the label beee and 1 more is outside the 3 classes.*mean 'bee'"
        self.refused(tmp_path / "data.parquet", tmp_path, message, classes=("ant", "bee", "cat"))

    def test_missing_labels(self, tmp_path, images, labels):
        values = pa.array([None, *labels[1:].tolist()])
        write(tmp_path / "data.parquet", [encode(i) for i in images], values)
        self.refused(
            tmp_path / "data.parquet", tmp_path, r"column 'label': row 0: the label is missing"
        )

    def test_rows_are_counted_within_their_file(self, tmp_path, images, labels, monkeypatch):
        monkeypatch.setattr("krscale.data.sources.parquet._LABEL_ROWS", 5)
        encoded = [encode(i) for i in images]
        write(tmp_path / "data/0.parquet", encoded[:20], labels[:20])
        values = pa.array([None if n == 13 else int(v) for n, v in enumerate(labels[20:])])
        write(tmp_path / "data/1.parquet", encoded[20:], values)
        self.refused(
            tmp_path / "data", tmp_path, r"data/1\.parquet: column 'label': row 13: .*null"
        )

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("", "row 5: the label '' is empty"),
            ("  ", "row 5: the label '  ' is empty"),
            ("bee ", "row 5: the class 'bee ' looks like the class 'bee'"),
        ],
    )
    def test_names_that_nobody_means(self, tmp_path, images, labels, name, message):
        names = np.array(["cat", "ant", "bee"], dtype=object)[labels]
        names[5] = name
        write(tmp_path / "data.parquet", [encode(i) for i in images], pa.array(names))
        self.refused(tmp_path / "data.parquet", tmp_path, message)

    @pytest.mark.timeout(30)
    def test_what_is_no_file(self, tmp_path, images, labels):
        write(tmp_path / "data/0.parquet", [encode(i) for i in images], labels)
        os.mkfifo(tmp_path / "data/1.parquet")
        self.refused(tmp_path / "data", tmp_path, r"1\.parquet: a named pipe")

    @pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux only")
    def test_a_name_that_is_no_text(self, tmp_path, images, labels):
        write(tmp_path / "data/0.parquet", [encode(i) for i in images], labels)
        (tmp_path / "data/0.parquet").rename(
            os.fsdecode(os.fsencode(tmp_path / "data") + b"/\xe9.parquet")
        )
        self.refused(tmp_path / "data", tmp_path, r"udce9\.parquet: the name is not UTF-8")

    def test_paths(self, tmp_path, images, labels):
        self.refused(tmp_path / "no.parquet", tmp_path, r"no\.parquet: no such file or folder")
        (tmp_path / "empty").mkdir()
        self.refused(tmp_path / "empty", tmp_path, r"empty: no \.parquet file in it")
        (tmp_path / "text.parquet").write_text("text")
        self.refused(tmp_path / "text.parquet", tmp_path, "not a readable Parquet file")
        with pytest.raises(UserError, match=r"data\.path: the source 'parquet' needs a path"):
            prepare_data(DataConfig(source="parquet"), tmp_path)
        write(tmp_path / "part/train-0.parquet", [encode(images[0])], labels[:1])
        write(tmp_path / "part/more.parquet", [encode(images[0])], labels[:1])
        self.refused(tmp_path / "part", tmp_path, r"more\.parquet is not named after a split")

    def test_a_list_of_paths(self, tmp_path, labels):
        table = pa.table({"path": ["a.png"] * NUM_IMAGES, "label": labels})
        pq.write_table(table, tmp_path / "list.parquet")
        self.refused(tmp_path / "list.parquet", tmp_path, r"no column 'image' .* 'image_list'\)")

    def test_no_rows(self, tmp_path, labels):
        write(tmp_path / "data.parquet", pa.array([], pa.binary()), pa.array([], pa.int64()))
        self.refused(tmp_path / "data.parquet", tmp_path, "there are no training images")
