"""Every split has every class; a cut by scikit-learn that has this already is used unchanged."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from krscale.data.splits.stratify import of_every_class, stratify
from krscale.errors import UserError

BOTH = (("test", 0.25), ("val", 0.2))


def labels_of(counts: list[int]) -> np.ndarray:
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(0).permutation(labels)


def names(counts: list[int]) -> list[str]:
    return [f"class {number}" for number in range(len(counts))]


def scikit_learns(labels: np.ndarray, fractions, seed: int) -> dict[str, np.ndarray]:
    """Return the cut that krscale made before it had another way to cut."""
    left, cut = np.arange(len(labels)), {}
    for name, fraction in fractions:
        kept, taken = train_test_split(
            np.arange(len(left)), test_size=fraction, stratify=labels[left], random_state=seed
        )
        left, cut[name] = left[np.sort(kept)], left[np.sort(taken)]
    return {"train": left, **cut}


@pytest.mark.parametrize("seed", [0, 12345, 2**32 - 1])
@pytest.mark.parametrize("fractions", [BOTH, BOTH[:1], BOTH[1:]])
@pytest.mark.parametrize("counts", [[20, 20, 20], [60, 30, 12], [178] * 10])
def test_a_cut_that_was_right_stays_as_it_was(counts, fractions, seed):
    labels = labels_of(counts)
    cut, proportional = stratify(labels, names(counts), fractions, seed)
    assert proportional
    expected = scikit_learns(labels, fractions, seed)
    assert {name: rows.tolist() for name, rows in cut.items()} == {
        name: rows.tolist() for name, rows in expected.items()
    }


@given(
    counts=st.lists(st.integers(3, 40), min_size=2, max_size=12),
    test=st.floats(0.01, 0.49),
    val=st.floats(0.01, 0.49),
    seed=st.integers(-(2**40), 2**40),
)
@settings(max_examples=60, deadline=None)
def test_every_split_holds_every_class(counts, test, val, seed):
    labels = labels_of(counts)
    cut, _ = stratify(labels, names(counts), (("test", test), ("val", val)), seed)
    assert sorted(np.concatenate(list(cut.values()))) == list(range(len(labels)))
    for rows in cut.values():
        assert (np.diff(rows) > 0).all()
        assert np.bincount(labels[rows], minlength=len(counts)).all()


def test_rare_classes_give_their_share():
    counts = [400, 4, 4]
    labels = labels_of(counts)
    cut, proportional = stratify(labels, names(counts), BOTH, 0)
    assert not proportional
    # Test: a quarter of 400 and of 4. Val: a fifth of 300, and at least one of 3.
    found = {name: np.bincount(labels[rows]).tolist() for name, rows in cut.items()}
    assert found == {"train": [240, 2, 2], "val": [60, 1, 1], "test": [100, 1, 1]}
    again, _ = stratify(labels, names(counts), BOTH, 0)
    other, _ = stratify(labels, names(counts), BOTH, 1)
    assert all((cut[name] == again[name]).all() for name in cut)
    assert any((cut[name] != other[name]).any() for name in cut)


@pytest.mark.parametrize("seed", [0, 2**32 - 1, 2**33 + 7, -1])
def test_items_of_rare_classes_are_taken_as_they_are_drawn(seed):
    """Item by item: a version or machine that cuts differently would train on test images."""
    counts = [400, 4, 4]
    labels = labels_of(counts)
    drawn = np.random.RandomState(seed % 2**32).permutation(len(labels)).tolist()
    expected = {"train": [], "val": [], "test": []}
    for label, (num_test, num_val) in enumerate([(100, 60), (1, 1), (1, 1)]):
        items = [item for item in drawn if labels[item] == label]
        expected["test"] += items[:num_test]
        expected["val"] += items[num_test : num_test + num_val]
        expected["train"] += items[num_test + num_val :]
    cut, _ = stratify(labels, names(counts), BOTH, seed)
    assert {name: rows.tolist() for name, rows in cut.items()} == {
        name: sorted(items) for name, items in expected.items()
    }


def test_more_classes_than_a_split_has_images():
    counts = [3] * 50
    cut, _ = stratify(labels_of(counts), names(counts), BOTH, 0)
    assert {name: len(rows) for name, rows in cut.items()} == {"train": 50, "val": 50, "test": 50}


@pytest.mark.parametrize(
    ("counts", "fractions", "message"),
    [
        ([60, 30, 2], BOTH, r"1 of 3 classes .*'class 2' has 2; at least 3 are needed"),
        ([60, 1, 0], BOTH, r"2 of 3 classes .*'class 1' has 1, 'class 2' has 0; at least 3"),
        ([60, 1], BOTH[1:], r"'class 1' has 1; at least 2 are needed"),
    ],
)
def test_too_few_images_are_refused_by_class(counts, fractions, message):
    with pytest.raises(UserError, match=message):
        stratify(labels_of(counts), names(counts), fractions, 0)


def test_two_images_are_enough_for_two_splits():
    cut, _ = stratify(labels_of([60, 2]), names([60, 2]), BOTH[1:], 0)
    assert {name: np.bincount(labels_of([60, 2])[rows])[1] for name, rows in cut.items()} == {
        "train": 1, "val": 1,
    }  # fmt: skip


@given(
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=80).map(np.array),
    number=st.integers(0, 100),
)
def test_chosen_items_have_the_classes_in_proportion(labels: np.ndarray, number: int):
    rows = of_every_class(labels, number)
    assert len(rows) == min(number, len(labels))
    assert (np.diff(rows) > 0).all()
    wanted = np.bincount(labels) * len(rows) / len(labels)
    found = np.bincount(labels[rows], minlength=len(wanted))
    assert (np.abs(found - wanted) < 1).all()


def test_items_of_classes_in_turns_are_of_every_class():
    labels = np.arange(1000) % 10
    for number in (100, 200, 500, 999):
        assert len(set(labels[of_every_class(labels, number)])) == 10
