"""Whole files or none, whatever happens while they are written."""

import errno
import os
import stat

import pytest

from krscale import files
from krscale.errors import DiskFullError
from krscale.files import new_folder, read_json, write_atomic, write_json


def full(path):
    path.write_text("half of ")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_crash_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def crash(temporary):
        temporary.write_text("half of ")
        raise ValueError("crash")

    with pytest.raises(ValueError, match="crash"):
        write_atomic(path, crash)
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(DiskFullError, match=r"a\.json: the disk is full"):
        write_atomic(path, full)
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_folder(tmp_path):
    path = tmp_path / "folder"
    with new_folder(path) as folder:
        write_json(folder / "a.json", 1)
    # The file inside is named, not the folder around it.
    with pytest.raises(DiskFullError, match=r"b\.json: the disk is full"), new_folder(path) as new:
        write_atomic(new / "b.json", full)
    assert [file.name for file in path.iterdir()] == ["a.json"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("free", [0, 1])
def test_writers_that_hide_the_errno(tmp_path, monkeypatch, free):
    """torch raises a RuntimeError on a full disk, safetensors an error of its own."""

    def hide(temporary):
        raise RuntimeError("[enforce fail] unexpected pos 576 vs 534")

    statvfs = os.statvfs_result([0] * 4 + [free] + [0] * 5)
    monkeypatch.setattr(files.os, "statvfs", lambda _: statvfs)
    with pytest.raises(RuntimeError if free else DiskFullError):
        write_atomic(tmp_path / "a", hide)


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    before = os.umask(0o022)
    try:
        write_json(tmp_path / "a.json", 1)
        with new_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o755
