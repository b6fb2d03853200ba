"""A folder exists at every moment while it is replaced."""

import sys
from pathlib import Path

import pytest

from krscale import files
from krscale.exchange import exchange
from krscale.files import new_folder


def content(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


def replace(path: Path, name: str) -> None:
    with new_folder(path) as folder:
        (folder / name).touch()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone can")
def test_a_folder_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint"
    replace(path, "old")

    def away(self: Path, target: Path) -> None:
        pytest.fail(f"{self} was moved: for a moment there was no folder")

    monkeypatch.setattr(Path, "replace", away)
    replace(path, "new")
    assert content(path) == ["new"]
    assert content(tmp_path) == ["checkpoint"]


def test_where_the_file_system_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "exchange", lambda one, other: False)
    path = tmp_path / "checkpoint"
    for name in ("old", "new"):
        replace(path, name)
        assert content(path) == [name]
    assert content(tmp_path) == ["checkpoint"]


def test_what_cannot_be_exchanged_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    assert not exchange(tmp_path / "here", tmp_path / "not there")
    assert content(tmp_path) == ["here"]
