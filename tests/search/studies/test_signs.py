"""The files by which trials show their progress."""

import os
from pathlib import Path

import pytest

from krscale.search.studies.checkpoints import forget, sign_path, sweep
from krscale.search.studies.signs import Signs, last_sign
from krscale.stalls import SECONDS_BETWEEN


def test_a_sign_changes_with_the_steps_and_goes_with_the_checkpoint(tmp_path: Path) -> None:
    now = 0.0
    path = sign_path(tmp_path, "plain/1-4/trial-0")
    assert last_sign(path) is None
    signs = Signs(path, clock=lambda: now)
    os.utime(path, ns=(7, 7))
    signs.give()
    assert last_sign(path) == 7, "not at every step"
    now += SECONDS_BETWEEN
    signs.give()
    assert last_sign(path) != 7
    forget(tmp_path, "plain/1-4/trial-0")
    assert not path.exists()
    Signs(path)
    Signs(sign_path(tmp_path, "plain/1-4/trial-1"))
    sweep(tmp_path, {tmp_path / "unfinished/plain/1-4/trial-7"})
    assert not path.exists()
    now += SECONDS_BETWEEN
    (tmp_path / "unfinished").rename(tmp_path / "gone")
    signs.give()  # the search has ended and its folder is gone


def test_a_sign_follows_no_link(tmp_path: Path) -> None:
    path, outside = sign_path(tmp_path, "plain/1-4/trial-0"), tmp_path / "outside"
    path.parent.mkdir(parents=True)
    path.symlink_to(outside)
    with pytest.raises(OSError, match="symbolic links"):
        Signs(path)
    assert not outside.exists()
