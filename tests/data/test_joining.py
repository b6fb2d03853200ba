"""Train and validation as one split."""

from dataclasses import replace

import numpy as np
import pytest

from krscale.config import DataConfig
from krscale.data import Split, prepare_data
from krscale.data.joining import join_train_and_val, joined_path, joined_splits
from krscale.errors import UserError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return prepare_data(DataConfig(), cache), cache


def test_it_holds_both_splits_in_order_and_no_other(prepared) -> None:
    dataset, cache = prepared
    joined = join_train_and_val(dataset, cache)
    train, val, both = dataset.split("train"), dataset.split("val"), joined.split("train")
    assert joined.num_samples == {"train": len(train) + len(val)}
    np.testing.assert_array_equal(both.images[: len(train)], train.images)
    np.testing.assert_array_equal(both.images[len(train) :], val.images)
    np.testing.assert_array_equal(both.labels, [*train.labels, *val.labels])
    for name in ("val", "test"):
        with pytest.raises(UserError, match=f"unknown split '{name}'.*Allowed: train"):
            joined.split(name)


def test_statistics_stay_and_the_fingerprint_does_not(prepared) -> None:
    dataset, cache = prepared
    joined = join_train_and_val(dataset, cache)
    assert (joined.mean, joined.std) == (dataset.mean, dataset.std)
    assert (joined.classes, joined.image_shape) == (dataset.classes, dataset.image_shape)
    assert joined.fingerprint != dataset.fingerprint


def test_a_folder_of_the_images_of_a_callable_can_be_called_so_everywhere(prepared) -> None:
    dataset, cache = prepared
    own = replace(dataset, source="own.module:images")
    assert joined_path(own, cache).name.startswith("own.module.images-")


def test_it_is_built_once_and_verified(prepared) -> None:
    dataset, cache = prepared
    path = join_train_and_val(dataset, cache).path
    stamp = (path / "train.arrow").stat().st_mtime_ns
    again = join_train_and_val(dataset, cache)
    assert (again.path / "train.arrow").stat().st_mtime_ns == stamp
    again.verify()
    content = bytearray((path / "train.arrow").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "train.arrow").write_bytes(content)
    with pytest.raises(UserError, match="damaged: "):
        again.verify()


@pytest.mark.parametrize("rows", [None, np.array([1, 2, 5, 6, 7, 10, 11])])
def test_some_images_of_the_second_split_follow_the_first(monkeypatch, tmp_path, rows) -> None:
    monkeypatch.setattr("krscale.data.reading.decoding.PIECE_BYTES", 3 * 20)  # three images at once
    generator = np.random.default_rng(0)
    first, second = (
        Split(generator.integers(0, 256, (n, 1, 4, 5), np.uint8), generator.integers(0, 9, n))
        for n in (4, 13)
    )
    joined = joined_splits(first, second, tmp_path / "images", rows)
    taken = slice(None) if rows is None else rows
    np.testing.assert_array_equal(joined.images, [*first.images, *second.images[taken]])
    np.testing.assert_array_equal(joined.labels, [*first.labels, *second.labels[taken]])
