import json

import pytest

from krscale.errors import UserError
from krscale.store import find_store
from krscale.store.manifest import FORMAT

NAMES = ("teacher", "data", "views", "taps", "store")
KEY = {name: name[0] + "1" for name in NAMES}


@pytest.fixture
def stores(small):
    """One finished store of `KEY`, and an unfinished one beside it."""
    small.key = KEY
    small.prepare()
    unfinished = small.folder / "unfinished"
    unfinished.mkdir()
    plan = json.loads((small.path / "manifest.json").read_text())["plan"] | {"format": FORMAT}
    (unfinished / "plan.json").write_text(json.dumps(plan))
    return small.folder


def test_the_store_of_the_key(stores):
    assert find_store(stores / "store", KEY).plan.key == KEY


@pytest.mark.parametrize("place", ["store", "elsewhere"])
@pytest.mark.parametrize("name", NAMES)
def test_the_fingerprint_that_differs_is_named_and_no_other(stores, name, place):
    with pytest.raises(UserError) as caught:
        find_store(stores / place, KEY | {name: "other"})
    text = str(caught.value)
    assert f"was built from another {name}.\n" in text
    lines = [line.strip() for line in text.splitlines() if ": the store has" in line]
    assert lines == [f"{name}: the store has {KEY[name]}, this run other"]
    assert str(stores / "store") in text


def test_the_nearest_of_several_is_named(stores, small):
    near = type(small)(stores / "near", key=KEY | {"views": "v2"})
    near.prepare()
    near.path.rename(stores / "nearer")
    with pytest.raises(UserError, match=r"nearer, was built from another taps\.\n"):
        find_store(stores / "x", KEY | {"views": "v2", "taps": "other"})


def test_unfinished_and_missing_are_told_apart(stores, tmp_path):
    with pytest.raises(UserError, match="unfinished: this store is not finished"):
        find_store(stores / "unfinished", KEY)
    with pytest.raises(UserError, match=r"no such store; `krscale teach` builds it\.$"):
        find_store(tmp_path / "empty" / "x", KEY)
