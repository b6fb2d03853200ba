"""What a data set holds, and how two of them differ."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from krscale.config import DataConfig
from krscale.data import SPLITS, prepare_data
from krscale.data.content import (
    Content,
    compare_counts,
    compare_lists,
    read_split_list,
    write_split_list,
)
from krscale.errors import UserError
from krscale.files import read_json, write_json

HEAD = "path,label,split,pixels"


def listed(path: Path, *lines: str) -> Path:
    path.write_text("\n".join((HEAD, *lines)) + "\n")
    return path


BEFORE = ("a/1,ant,train,01", "a/2,ant,test,02", "b/1,bee,train,03", "b/2,bee,val,04")


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (BEFORE[:3], "1 image removed (bee 1)"),
        ((*BEFORE, "b/3,bee,train,05"), "1 image added (bee 1)"),
        (("a/1,ant,train,0f", *BEFORE[1:]), "1 image with other pixels (ant 1)"),
        (("a/1,bee,train,01", *BEFORE[1:]), "1 image with another label (ant -> bee 1)"),
        (("a/1,ant,val,01", *BEFORE[1:]), "1 image in another split (ant 1)"),
        (("z/9,ant,train,01", *BEFORE[1:]), "the same images in another order"),
        (BEFORE[::-1], "the same images in another order"),
        ((*BEFORE, "b/1 copy,bee,train,03"), "1 image added (bee 1)"),
        ((*BEFORE[1:], "c/1,cat,train,09"), "1 image removed (ant 1), 1 image added (cat 1)"),
    ],
)
def test_a_difference_in_words(tmp_path, now, said):
    before = listed(tmp_path / "before.csv", *BEFORE)
    assert str(compare_lists(before, listed(tmp_path / "now.csv", *now))) == said


def test_of_copies_the_one_that_is_gone_is_counted_once(tmp_path):
    lines = [f"a/{n},ant,train,01" for n in range(5)]
    before = listed(tmp_path / "before.csv", *lines)
    now = listed(tmp_path / "now.csv", *lines[2:])
    assert str(compare_lists(before, now)) == "2 images removed (ant 2)"


def test_any_name_is_read_back_as_it_was_written(tmp_path):
    names = ("cat\r", "a\rb", "a\nb", "a\r\n", 'a"b', '"', "a,b", " a", "'", "\u2028", "\x85")
    pixels = {"train": np.arange(len(names), dtype=np.uint64)}
    content = Content(names, pixels, {"train": np.arange(len(names))}, (3, 2, 2))
    paths = [f"{name}/{number}.png" for number, name in enumerate(names)]
    write_split_list(tmp_path / "splits.csv", content, {"train": paths})
    found = list(read_split_list(tmp_path / "splits.csv"))
    assert [(line.path, line.label) for line in found] == list(zip(paths, names, strict=True))


def test_counts_where_there_is_no_list():
    assert compare_counts({"a": 3, "b": 4}, {"a": 1, "b": 4, "c": 2}) == (
        "2 images removed (a 2), 2 images added (c 2)"
    )
    assert "but others" in compare_counts({"a": 3}, {"a": 3})


def test_a_damaged_list_is_named(tmp_path):
    for content in ("path,label\n", f"{HEAD}\na,b\n", ""):
        (tmp_path / "splits.csv").write_text(content)
        with pytest.raises(UserError, match=r"splits\.csv: damaged"):
            list(read_split_list(tmp_path / "splits.csv"))


def test_the_record_is_that_of_the_images_even_where_copies_were_moved(tmp_path):
    for label, name in enumerate("abc"):
        for number in range(12):
            path = tmp_path / f"data/{name}/{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            values = np.random.default_rng(100 * label + number).integers(0, 256, (6, 5, 3))
            Image.fromarray(values.astype(np.uint8)).save(path)
            if number < 4:
                shutil.copy(path, path.with_name(f"copy{number}.png"))
    config = DataConfig(source="image_folder", path=str(tmp_path / "data"))
    dataset = prepare_data(config, tmp_path / "cache")
    splits = {name: dataset.split(name) for name in SPLITS}
    assert Content.of(dataset.classes, splits).digest == dataset.content().digest
    assert dataset.content().images == {"a": 16, "b": 16, "c": 16}
    lines = list(read_split_list(dataset.path / "splits.csv"))
    assert [line.split for line in lines] == [n for n in SPLITS for _ in splits[n].labels]
    place = iter(lines)
    for name in SPLITS:
        for pixels, label in zip(splits[name].images, splits[name].labels, strict=True):
            line = next(place)
            read = np.asarray(Image.open(tmp_path / "data" / line.path)).transpose(2, 0, 1)
            assert np.array_equal(read, pixels)
            assert line.label == dataset.classes[label]


def test_a_data_set_of_an_older_krscale_gets_its_record(tmp_path):
    dataset = prepare_data(DataConfig(), tmp_path)
    known = dataset.content()
    record = dataset.path / "content.json"
    record.unlink()
    assert dataset.content() == known
    write_json(record, read_json(record) | {"digest": 3})
    with pytest.raises(UserError, match=r"content\.json: damaged"):
        dataset.content()
