import os
import pickle
import struct
import tarfile

import numpy as np
import pytest

from krscale.config import DataConfig
from krscale.data import prepare_data
from krscale.data.reading.pickled_arrays import read_numbers
from krscale.data.sources.cifar import Cifar10, Cifar100
from krscale.errors import UserError

NAMES_10 = [f"animal {number}" for number in range(10)]
NAMES_100 = [f"thing {number}" for number in range(100)]


# Pickles as Python 2 wrote them (protocol 2), built opcode by opcode: the published files hold byte
# strings, which Python 3 would write differently.


def py2(value):
    if isinstance(value, bytes):
        return b"T" + struct.pack("<i", len(value)) + value
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(py2(item) for item in value) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(py2(key) + py2(item) for key, item in value.items()) + b"u"
    return py2_array(value)


def py2_array(array):
    dtype = b"cnumpy\ndtype\n" + py2(b"u1") + py2(0) + py2(1) + b"\x87R"
    dtype += b"(" + py2(3) + py2(b"|") + b"NNN" + py2(-1) + py2(-1) + py2(0) + b"tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
    empty += py2(0) + b"\x85" + py2(b"b") + b"\x87R"
    shape = b"(" + b"".join(py2(size) for size in array.shape) + b"t"
    return empty + b"(" + py2(1) + shape + dtype + b"\x89" + py2(array.tobytes()) + b"tb"


def py2_pickle(value):
    return b"\x80\x02" + py2(value) + b"."


def made(num_images, num_classes, seed):
    generator = np.random.default_rng(seed)
    values = generator.integers(0, 256, (num_images, 3072), dtype=np.uint8)
    return values, np.arange(num_images) % num_classes


def batch_10(seed, num_images=20):
    values, labels = made(num_images, 10, seed)
    return {b"batch_label": b"a batch", b"labels": labels.tolist(), b"data": values}


def batch_100(seed, num_images):
    values, labels = made(num_images, 100, seed)
    coarse = (labels // 5).tolist()
    return {b"data": values, b"coarse_labels": coarse, b"fine_labels": labels.tolist()}


def python_10():
    files = {f"data_batch_{n}": py2_pickle(batch_10(n)) for n in range(1, 6)}
    files["test_batch"] = py2_pickle(batch_10(6))
    names = [name.encode() for name in NAMES_10]
    files["batches.meta"] = py2_pickle({b"num_cases_per_batch": 20, b"label_names": names})
    return files


def rows(values, *labels):
    columns = [np.asarray(label, dtype=np.uint8)[:, None] for label in labels]
    return np.concatenate([*columns, values], axis=1).tobytes()


def binary_10():
    files = {}
    for number in range(1, 7):
        values, labels = made(20, 10, number)
        name = "test_batch.bin" if number == 6 else f"data_batch_{number}.bin"
        files[name] = rows(values, labels)
    files["batches.meta.txt"] = ("\n".join(NAMES_10) + "\n\n").encode()
    return files


def python_100():
    names = [name.encode() for name in NAMES_100]
    return {
        "train": py2_pickle(batch_100(1, 600)),
        "test": py2_pickle(batch_100(2, 100)),
        "meta": py2_pickle({b"coarse_label_names": [b"x"] * 20, b"fine_label_names": names}),
    }


def binary_100():
    files = {"fine_label_names.txt": "\n".join(NAMES_100).encode(), "coarse_label_names.txt": b"x"}
    for number, name, num_images in ((1, "train.bin", 600), (2, "test.bin", 100)):
        values, labels = made(num_images, 100, number)
        files[name] = rows(values, labels // 5, labels)
    return files


VERSIONS = {
    "cifar-10-python": (python_10, Cifar10, "cifar10", "cifar-10-batches-py"),
    "cifar-10-binary": (binary_10, Cifar10, "cifar10", "cifar-10-batches-bin"),
    "cifar-100-python": (python_100, Cifar100, "cifar100", "cifar-100-python"),
    "cifar-100-binary": (binary_100, Cifar100, "cifar100", "cifar-100-binary"),
}


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def place(version, kind, folder):
    """Write a version; return its folder, the parent of that folder, or an archive."""
    make, _, _, inner = VERSIONS[version]
    write(folder / inner, make())
    if kind == "archive":
        path = folder / f"{version}.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            archive.add(folder / inner, inner)
        return path
    return folder / inner if kind == "folder" else folder


def open_cifar(version, path):
    _, source, name, _ = VERSIONS[version]
    return source(DataConfig(source=name, path=str(path)))


def silent(done, total):
    pass


@pytest.mark.parametrize("kind", ["folder", "parent", "archive"])
@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_holds_the_same_images(version, kind, tmp_path):
    data = open_cifar(version, place(version, kind, tmp_path)).read(silent)
    if "100" in version:
        (values, labels), (test_values, test_labels) = made(600, 100, 1), made(100, 100, 2)
        names = NAMES_100
    else:
        batches = [made(20, 10, number) for number in range(1, 6)]
        values, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        test_values, test_labels = made(20, 10, 6)
        names = NAMES_10
    assert data.classes == tuple(names)
    # Red, green and blue planes, each row by row.
    assert np.array_equal(data.splits["train"].images, values.reshape(-1, 3, 32, 32))
    assert np.array_equal(data.splits["train"].labels, labels)
    assert np.array_equal(data.splits["test"].images, test_values.reshape(-1, 3, 32, 32))
    assert np.array_equal(data.splits["test"].labels, test_labels)


@pytest.mark.parametrize("version", ["cifar-10-python", "cifar-100-binary"])
def test_prepared_as_arrow_with_its_own_test_split(version, tmp_path):
    path = place(version, "archive", tmp_path)
    name = VERSIONS[version][2]
    dataset = prepare_data(DataConfig(source=name, path=str(path)), tmp_path / "cache")
    train = 100 if name == "cifar10" else 600
    assert dataset.num_samples["train"] + dataset.num_samples["val"] == train
    assert dataset.image_shape == (3, 32, 32)
    source = open_cifar(version, path).read(silent)
    assert np.array_equal(dataset.split("test").images, source.splits["test"].images)


def test_identity_is_the_content_not_the_place(tmp_path):
    first = place("cifar-10-python", "folder", tmp_path / "a")
    second = place("cifar-10-python", "parent", tmp_path / "b")
    identities = [open_cifar("cifar-10-python", path).identity() for path in (first, second)]
    assert identities[0] == identities[1]
    write(first, {"data_batch_3": py2_pickle(batch_10(99))})
    assert open_cifar("cifar-10-python", first).identity() != identities[0]


@pytest.mark.parametrize(
    ("version", "missing"),
    [
        ("cifar-10-python", "data_batch_4"),
        ("cifar-10-binary", "batches.meta.txt"),
        ("cifar-100-python", "meta"),
    ],
)
def test_missing_file_is_named(version, missing, tmp_path):
    path = place(version, "folder", tmp_path)
    (path / missing).unlink()
    with pytest.raises(UserError, match=rf"missing {missing}\. Expected cifar-.*-python\.tar\.gz"):
        open_cifar(version, path).identity()


def test_archive_with_a_missing_file(tmp_path):
    path = place("cifar-10-python", "parent", tmp_path)
    (path / "cifar-10-batches-py" / "test_batch").unlink()
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        archive.add(path / "cifar-10-batches-py", "cifar-10-batches-py")
    with pytest.raises(UserError, match=r"x\.tar\.gz: missing test_batch\."):
        open_cifar("cifar-10-python", tmp_path / "x.tar.gz").read(silent)


def test_folder_without_any_file(tmp_path):
    with pytest.raises(UserError, match=r"no file of cifar10\. Expected .*data_batch_1, .*\.bin"):
        open_cifar("cifar-10-python", tmp_path).identity()


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-bin"])
def test_a_file_larger_than_any_of_the_source_is_not_read(tmp_path, inside):
    """The file is not read even for its hash: reading a wrong archive of 1 TB would take hours."""
    path = tmp_path / "large.tar"
    if inside:
        path = tmp_path / inside
        path.mkdir()
        (path / "batches.meta.txt").touch()
        for name in (*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"):
            (path / name).touch()
            os.truncate(path / name, 10**12)
    else:
        path.touch()
        os.truncate(path, 10**12)
    with pytest.raises(UserError, match=r"1,000,000,000,000 bytes; files of this source have at"):
        open_cifar("cifar-10-python", path).identity()


def test_path_that_does_not_exist(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such file or folder\. Expected"):
        open_cifar("cifar-10-python", tmp_path / "nowhere")


def test_path_that_is_not_given():
    with pytest.raises(UserError, match=r"'cifar100' needs a path\. Expected cifar-100-python"):
        Cifar100(DataConfig(source="cifar100"))


@pytest.mark.parametrize("damage", ["cut", "text"])
def test_damaged_archive(damage, tmp_path):
    path = place("cifar-10-python", "archive", tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"<html>not found</html>")
    with pytest.raises(UserError, match="not a readable archive"):
        open_cifar("cifar-10-python", path).read(silent)


GOOD = batch_10(1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (py2_pickle(GOOD)[:-200], "not a batch of images that can be trusted"),
        (b"", "not a batch of images that can be trusted"),
        (py2_pickle([1, 2]), "holds no 'data'"),
        (py2_pickle({b"labels": [1]}), "holds no 'data'"),
        (py2_pickle({b"data": GOOD[b"data"]}), "holds no 'labels'"),
        (py2_pickle({**GOOD, b"data": b"bytes"}), "data is not a table of uint8"),
        (py2_pickle({**GOOD, b"data": GOOD[b"data"][:, :100]}), "100 values, expected 3072"),
        (py2_pickle({**GOOD, b"labels": [b"cat"] * 20}), "labels is not a list of whole numbers"),
        (pickle.dumps({**GOOD, b"labels": [10**30] * 20}, 2), "the label 10{30} can be no class"),
        (py2_pickle({**GOOD, b"labels": [70_000] * 20}), "the label 70000 can be no class"),
        (py2_pickle({b"data": GOOD[b"data"][:0], b"labels": []}), "it holds no image"),
    ],
)
def test_damaged_batch_is_named(content, message, tmp_path):
    path = place("cifar-10-python", "folder", tmp_path)
    write(path, {"data_batch_2": content})
    with pytest.raises(UserError, match=rf"data_batch_2: .*{message}"):
        open_cifar("cifar-10-python", path).read(silent)


def test_binary_batch_of_a_wrong_length(tmp_path):
    path = place("cifar-10-binary", "folder", tmp_path)
    write(path, {"test_batch.bin": b"\0" * 3074})
    with pytest.raises(UserError, match=r"test_batch\.bin: 3074 bytes are no whole number of 3073"):
        open_cifar("cifar-10-binary", path).read(silent)


def test_a_binary_batch_of_no_bytes(tmp_path):
    path = place("cifar-10-binary", "folder", tmp_path)
    write(path, {"data_batch_3.bin": b""})
    with pytest.raises(UserError, match=r"data_batch_3\.bin: it holds no image"):
        open_cifar("cifar-10-binary", path).read(silent)


@pytest.mark.parametrize("in_the_next", [20, 21])
def test_labels_and_images_of_different_number(in_the_next, tmp_path):
    """Batches are concatenated; labels that one file lacks must not be taken from the next."""
    path = place("cifar-10-python", "folder", tmp_path)
    write(path, {"data_batch_1": py2_pickle({**GOOD, b"labels": [0] * 19})})
    write(path, {"data_batch_2": py2_pickle({**GOOD, b"labels": [0] * in_the_next})})
    with pytest.raises(UserError, match="data_batch_1: 20 images, but 19 labels"):
        open_cifar("cifar-10-python", path).read(silent)


def test_class_names_that_are_no_names(tmp_path):
    path = place("cifar-10-python", "folder", tmp_path)
    write(path, {"batches.meta": py2_pickle({b"label_names": [1, 2]})})
    with pytest.raises(UserError, match="label_names is not a list of names"):
        open_cifar("cifar-10-python", path).read(silent)


class Runs:
    """Pickles to a function call, which an attacker would put in place of a batch."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("function", [os.system, eval, open, getattr])
def test_code_in_a_pickle_is_refused_and_does_not_run(protocol, function, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = {
        os.system: ("touch ran",),
        eval: ("open('ran', 'w')",),
        open: ("ran", "w"),
        getattr: ("text", "upper"),
    }
    content = pickle.dumps({b"data": Runs(function, *commands[function])}, protocol)
    with pytest.raises(UserError, match=r"asks for .*, which no batch of images needs"):
        read_numbers(content, "batch")
    assert list(tmp_path.iterdir()) == []


def test_refused_pickle_is_named(tmp_path):
    path = place("cifar-100-python", "folder", tmp_path)
    write(path, {"train": pickle.dumps(Runs(os.system, "true"))})
    with pytest.raises(UserError, match=r"train: .* asks for posix\.system"):
        open_cifar("cifar-100-python", path).read(silent)


def test_arrays_of_objects_run_nothing_either():
    content = pickle.dumps({b"data": np.array([Runs(eval, "1")], dtype=object)}, 2)
    with pytest.raises(UserError, match="an array of type 'O8'"):
        read_numbers(content, "batch")
