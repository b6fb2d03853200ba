"""Whole files or none, whatever happens while they are written."""

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from krscale import files
from krscale.errors import DamagedFileError, DiskFullError, UserError
from krscale.files import (
    follow,
    has_checksum,
    new_folder,
    read_json,
    reading,
    set_aside,
    write_atomic,
    write_json,
)


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
    # The error names the file inside, not the folder around it.
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


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"", "it is empty"),
        (b'{"a": 1,\n"b" 2}', "line 2, column 5: "),
        (b'{"a": NaN}', "it holds NaN"),
        (b'{"a": "\xff"}', "byte 7 is not text"),
        (b"[" * 100_000, ""),
    ],
)
def test_what_is_not_json_is_named_with_its_place(tmp_path, content, place):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError) as caught:
        read_json(path, "Make it again.")
    assert str(caught.value).startswith(f"{path}: damaged: {place}")
    assert str(caught.value).endswith(". Make it again.")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(DamagedFileError, match=r"a\.json: this file is missing\. Make it\."):
        read_json(tmp_path / "a.json", "Make it.")
    with pytest.raises(DamagedFileError, match="cannot be read"):
        read_json(tmp_path)


@pytest.mark.parametrize(
    ("look", "place"),
    [
        (lambda: {}["width"], "the field 'width' is missing"),
        (lambda: int("x"), "invalid literal for int"),
        (lambda: iter(3), "'int' object is not iterable"),
        (lambda: [].missing, "'list' object has no attribute 'missing'"),
    ],
)
def test_what_goes_wrong_with_a_content_names_the_file(tmp_path, look, place):
    with pytest.raises(DamagedFileError) as caught, reading(tmp_path / "a.json"):
        look()
    assert str(caught.value).startswith(f"{tmp_path}/a.json: damaged: {place}")


def test_errors_of_a_user_and_of_the_system_pass(tmp_path):
    for error in (UserError("of another file"), OSError("disk")):
        with pytest.raises(type(error)) as caught, reading(tmp_path / "a.json"):
            raise error
        assert caught.value is error


def test_nothing_that_was_set_aside_is_lost(tmp_path):
    path = tmp_path / "a.jsonl"
    for number in range(3):
        path.write_text(str(number))
        set_aside(path)
    found = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert found == {
        "a.jsonl.damaged": "0", "a.jsonl.damaged-2": "1", "a.jsonl.damaged-3": "2",
    }  # fmt: skip


def test_a_file_follows_its_folder(tmp_path):
    before, now = tmp_path / "A", tmp_path / "B"
    now.mkdir()
    file = before / "x.db"
    assert follow(file, before, now) == now / "x.db", "neither is there: the folder was moved"
    before.mkdir()
    file.touch()
    assert follow(file, before, now) == file, "it stayed behind"
    (now / "x.db").touch()
    assert follow(file, before, now) == now / "x.db", "of a copy, its own"
    assert follow(tmp_path / "A2" / "x", before, now) == tmp_path / "A2" / "x"
    assert follow(file, before, before) == file


def test_any_byte_of_json_that_changes_is_found(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json(path, {"gain": 0.5, "names": ["a", "é"], "none": None})
    content = path.read_bytes()
    found = read_json(path)
    assert found == {"gain": 0.5, "names": ["a", "é"], "none": None}
    for at in range(len(content)):
        for mask in (1, 2, 16, 0x80):
            changed = bytearray(content)
            changed[at] ^= mask
            path.write_bytes(changed)
            with pytest.raises(DamagedFileError, match=r"record\.json: damaged"):
                read_json(path)


def test_json_of_an_older_krscale_has_no_checksum(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text('{\n  "gain": 0.5\n}\n')
    assert read_json(path) == {"gain": 0.5}
    assert not has_checksum(path)
    write_json(path, read_json(path), checksum=False)
    assert not has_checksum(path)
    write_json(path, read_json(path))
    assert has_checksum(path)
    write_json(path, {**json.loads(path.read_text()), "gain": 0.25})
    assert read_json(path) == {"gain": 0.25}, "a checksum that was read along is replaced"


@pytest.mark.parametrize("content", [{}, [], [1, 2], 3, "text", None])
def test_what_is_no_object_has_none(content: object, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json(path, content)
    assert read_json(path) == content
