"""Digests by blocks: each block is compared once, before it is used."""

from __future__ import annotations

from pathlib import Path

import pytest

from krscale import digests
from krscale.digests import (
    CheckedFile,
    FileDigest,
    check_file,
    copy_checked,
    digest_path,
    read_digest,
    write_digest,
)
from krscale.errors import DamagedFileError


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "BLOCK_BYTES", 16)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file.bin"
    path.write_bytes(bytes(range(100)))
    write_digest(path)
    return path


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_every_byte_counts(file: Path) -> None:
    assert check_file(file)
    for at in range(100):
        flip(file, at)
        with pytest.raises(DamagedFileError, match=rf"file\.bin: damaged: bytes {at // 16 * 16} "):
            check_file(file, "Delete it.")
        flip(file, at)
    assert check_file(file)


def test_blocks_that_are_not_read_are_not_compared(file: Path) -> None:
    flip(file, 50)
    digest = read_digest(file)
    assert digest is not None
    checked = CheckedFile(file, digest)
    checked.check(0, 48)
    checked.check(64)
    assert not checked.is_whole
    for start, stop in ((47, 49), (63, 64), (0, None)):
        with pytest.raises(DamagedFileError, match="bytes 48 to 63"):
            checked.check(start, stop)


def test_a_block_is_read_once_in_a_process(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_file(file)
    monkeypatch.setattr(CheckedFile, "_check_block", None)
    assert check_file(file)


@pytest.mark.parametrize("change", [b"", bytes(99), bytes(101)])
def test_another_size(file: Path, change: bytes) -> None:
    file.write_bytes(change)
    with pytest.raises(DamagedFileError, match=f"{len(change)} bytes, 100 were written"):
        check_file(file)


def test_the_digest_itself_is_checked(file: Path) -> None:
    record = digest_path(file)
    for at in range(record.stat().st_size):
        flip(record, at)
        with pytest.raises(DamagedFileError, match=r"file\.bin\.digest\.json: damaged"):
            check_file(file)
        flip(record, at)


def test_without_a_digest_there_is_nothing_to_compare(file: Path) -> None:
    digest_path(file).unlink()
    assert not check_file(file)


def test_a_hash_of_the_whole_is_a_digest_of_one_block(file: Path) -> None:
    from krscale.files import sha256

    digest = FileDigest.whole(100, sha256(file))
    CheckedFile(file, digest).check(50, 51)
    flip(file, 99)
    with pytest.raises(DamagedFileError, match=r"file\.bin: damaged: its content"):
        CheckedFile(file, digest).check(50, 51)


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    write_digest(path)
    assert check_file(path)


def test_a_copy_takes_its_digest_along(file: Path) -> None:
    copy = file.with_name("copy.bin")
    copy_checked(file, copy)
    assert read_digest(copy) == read_digest(file)
    flip(file, 3)
    with pytest.raises(DamagedFileError):
        copy_checked(file, copy)
    assert check_file(copy)
    digest_path(file).unlink()
    copy_checked(file, copy)
    assert not check_file(copy)
