"""Splits and files that give the same classes different numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from krscale.config import DataConfig, FilesConfig
from krscale.data.given import keep_given
from krscale.data.reading.naming import Written, joined, read_labels
from krscale.data.sources.function import Function
from krscale.data.sources.registry import open_source
from krscale.errors import UserError

TRAIN = ("ant", "bee", "cat")


def config(*classes: str, **data: Any) -> DataConfig:
    return DataConfig(source="numpy", path="a.npz", files=FilesConfig(classes=classes), **data)


def part(values: list[Any], names: tuple[str, ...] = ()) -> Written:
    kind = object if isinstance(values[0], str) else np.int64
    return Written(np.array(values, kind), "image {}".format, names)


def read(train: Written, test: Written, *classes: str, **data: Any) -> tuple[list[str], list[str]]:
    """Return the names that images of train and test end up with."""
    found, labels = read_labels({"test": test, "train": train}, config(*classes, **data))
    one, two = ([found[number] for number in labels[split]] for split in ("train", "test"))
    return one, two


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        (part([0, 1, 2], TRAIN), part([0, 1], ("bee", "cat")), ["bee", "cat"]),
        (part([0, 1, 2], TRAIN), part([0, 2], TRAIN[::-1]), ["cat", "ant"]),
        (part([0, 1, 2], TRAIN), part([0, 2]), ["ant", "cat"]),
        (part([0, 1, 2]), part([0, 2], TRAIN), ["ant", "cat"]),
        (part([0, 1, 2], TRAIN), part([1], ("dog", "bee")), ["bee"]),
        (part([0, 1, 2], TRAIN), part(["cat", "ant"]), ["cat", "ant"]),
        (part(["ant", "bee", "cat"]), part([0, 1], ("bee", "cat")), ["bee", "cat"]),
        (part(["cat", "bee", "ant"], TRAIN[::-1]), part([0]), ["cat"]),
        (part([str(n) for n in range(11)]), part([2, 10]), ["2", "10"]),
        (part(list(range(11))), part(["2", "10"]), ["2", "10"]),
    ],
)
def test_splits_are_compared_by_name(train: Written, test: Written, expected: list[str]) -> None:
    assert read(train, test)[1] == expected


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (
            part([0, 1, 2], TRAIN), part([0, 1], ("bee", "dog")),
            "image 1: the label 1 is 'dog' there, .* train has the classes ant, bee, cat, this "
            "split bee, dog",
        ),
        (part([0, 1, 2], TRAIN), part([2], ("bee", "cat")), "image 0: the label 2 has no name"),
        (part([0, 1, 2], TRAIN), part([0, 1], ("bee", "bee")), "two numbers are named 'bee'"),
        (
            part(["ant", "bee"]), part([0, 1]),
            r"image 0: the label 0 is a number, where those of train are text \(ant, bee\)",
        ),
        (part(["00", "01"]), part([0, 1]), "the label 0 is a number"),
        (part([0, 1]), part(["00", "01"]), "the label 00 and 1 more is outside the 2"),
        (part([0, 1, 2], TRAIN), part(["dog"]), "the label dog is outside the 3 classes"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared(train: Written, test: Written, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(train, test)


def test_of_train_without_an_image_that_is_said() -> None:
    empty = Written(np.zeros(0, np.int64), "image {}".format)
    with pytest.raises(UserError, match=r"a\.npz: images of test, but none of train\."):
        read(empty, part([0, 1]))


class TestGivenClasses:
    def test_an_order_of_the_names_of_the_files(self) -> None:
        train, test = part([0, 1, 2], TRAIN), part([0, 1], ("bee", "cat"))
        assert read(train, test, "cat", "ant", "bee") == ([*TRAIN], ["bee", "cat"])
        assert read(train, test, "dog", "cat", "ant", "bee") == ([*TRAIN], ["bee", "cat"])

    def test_an_order_of_the_numbers(self) -> None:
        sorted_as_text = sorted(map(str, range(12)))
        found = read(part(list(range(12))), part([3, 11]), *sorted_as_text)
        assert found == ([str(number) for number in range(12)], ["3", "11"])
        named = part([0, 1, 2], TRAIN), part([0, 1], ("cat", "bee"))
        assert read(*named, "2", "0", "1") == (["0", "1", "2"], ["2", "1"])
        assert read(part([1, 3]), part([3]), "3", "1", map_labels=True) == (["1", "3"], ["3"])

    def test_new_names(self) -> None:
        train, test = part([0, 1, 2], TRAIN), part([0, 1], ("bee", "cat"))
        assert read(train, test, "x", "y", "z") == (["x", "y", "z"], ["y", "z"])
        assert read(part([0, 1]), part([1]), "1", "2") == (["1", "2"], ["2"])
        assert read(train, part(["bee"]), "x", "y", "z")[1] == ["y"]
        assert read(part([0, 1, 2], TRAIN[:2]), part([2]), *TRAIN)[1] == ["cat"]

    def test_some_of_the_names_at_other_places(self) -> None:
        assert read(part([0, 1, 2], TRAIN), part([1]), "Ant", "Bee", "CAT")[1] == ["Bee"]
        assert read(part([0, 1], ("A", "a")), part([1]), "upper A", "a")[0] == ["upper A", "a"]
        with pytest.raises(UserError, match=r"'Ant' is in place 1 .* class 0"):
            read(part([0, 1, 2], ("ant", "dog", "cat")), part([1]), "Cat", "Ant", "Dog")
        message = "'ant' is in place 1 .* class 0: it names ant, bee, cat. Allowed: all of these"
        with pytest.raises(UserError, match=message):
            read(part([0, 1, 2], TRAIN), part([0], TRAIN), "bee", "ant", "dog")


def test_files_are_joined_by_name() -> None:
    found = joined([part([0, 1], ("ant", "bee")), part([0, 1], ("cat", "ant")), part([1])], str)
    assert found.names == ("ant", "bee", "cat")
    assert found.values.tolist() == [0, 1, 2, 0, 1]


def test_parquet_files_name_their_own_numbers(tmp_path: Path) -> None:
    image = bytes(range(12))
    for name, names in (("train-0", TRAIN), ("train-1", TRAIN[::-1]), ("test", TRAIN[:0:-1])):
        pixels = pa.array([image] * len(names), pa.binary(12))
        info = json.dumps({"info": {"features": {"label": {"names": names}}}})
        table = pa.table({"image": pixels, "label": list(range(len(names)))})
        table = table.replace_schema_metadata({"huggingface": info})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    files = FilesConfig(raw_shape=(3, 2, 2))
    source = DataConfig(source="parquet", path=str(tmp_path), files=files)
    data = open_source(source).read(lambda _done, _all: None)
    assert data.classes == TRAIN
    assert data.splits["train"].labels.tolist() == [0, 1, 2, 2, 1, 0]
    assert data.splits["test"].labels.tolist() == [2, 1]


def split(names: tuple[str, ...], labels: list[int]) -> tuple[np.ndarray, list[int], Any]:
    return np.arange(len(labels) * 12, dtype=np.uint8).reshape(-1, 2, 2, 3), labels, names


def test_a_callable_names_the_classes_of_each_split(monkeypatch: pytest.MonkeyPatch) -> None:
    same = {"train": split(TRAIN, [0, 1, 2]), "test": split(TRAIN, [0])}
    other = same | {"test": split(TRAIN[::-1], [0])}
    found = []
    for content in (same, other):
        monkeypatch.setattr(
            "krscale.data.sources.function._find", lambda _name, c=content: lambda: c
        )
        source = Function(DataConfig(source="own:images"))
        data = source.read(lambda _done, _all: None)
        found.append((data.splits["test"].labels.tolist(), source.identity()))
    assert [labels for labels, _ in found] == [[0], [2]]
    assert found[0][1] != found[1][1]
    assert "names_of_splits" not in found[0][1]


class Named(list[Any]):
    """A data set that names its classes, as those of torchvision do."""

    def __init__(self, labels: list[int], classes: list[str]) -> None:
        super().__init__((np.full((2, 2, 3), n, np.uint8), n_th) for n, n_th in enumerate(labels))
        self.classes = classes


@pytest.mark.parametrize("names", [["ant", "bee", "cat"], ["0", "10", "2"]])
def test_objects_name_the_classes_of_each_split(names: list[str], tmp_path: Path) -> None:
    """As text, folders 0, 2 and 10 are sorted 0, 10, 2, so class 1 is the folder 10."""
    given = keep_given((Named([0, 1, 2], names), Named([0, 1], names[1:])), None, tmp_path)
    data = open_source(DataConfig(**given.table)).read(lambda _done, _all: None)
    assert data.classes == tuple(names)
    assert data.splits["train"].labels.tolist() == [0, 1, 2]
    assert data.splits["val"].labels.tolist() == [1, 2]


def test_data_from_before_names_were_compared_have_another_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the old folder would be found by its identity, with the old labels."""
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 4, 4), np.uint8), y=[0, 1, 0, 1])

    def identity(*classes: str) -> dict[str, Any]:
        files = FilesConfig(classes=classes)
        found = DataConfig(source="numpy", path=str(tmp_path / "a.npz"), files=files)
        return dict(open_source(found).identity())

    def of_callable(*classes: str) -> dict[str, Any]:
        config = DataConfig(source="own:images", files=FilesConfig(classes=classes))
        return dict(Function(config).identity())

    content = {"train": split(("a", "b"), [0, 1])}
    monkeypatch.setattr("krscale.data.sources.function._find", lambda _name: lambda: content)
    for found in (identity, of_callable):
        assert "labels" not in found()
        assert found("b", "a")["labels"] == "by name"


def test_numbers_that_no_image_has_may_be_called_alike() -> None:
    filled = part([0, 1], ("ant", "bee", "unused", "unused"))
    assert read(part([0, 1], ("bee", "ant")), filled)[1] == ["ant", "bee"]
    with pytest.raises(UserError, match="two numbers are named 'ant'"):
        read(part([0, 1], ("ant", "bee")), part([0, 1], ("ant", "ant")))
