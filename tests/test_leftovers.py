"""Leftovers of killed writers are removed; what is still being written stays."""

from pathlib import Path
from uuid import uuid4

from filelock import FileLock

from krscale.leftovers import hidden_lock, sweep_leftovers


def leftover(folder: Path, name: str, ending: str = "") -> Path:
    path = folder / f".{name}.{ending or uuid4().hex}"
    path.mkdir()
    (path / "state.pt").write_bytes(b"half of it")
    return path


def teachers_lock(path: Path) -> Path:
    return path.with_suffix(".lock")


def test_only_what_nobody_writes_is_removed(tmp_path: Path) -> None:
    gone, scratch = leftover(tmp_path, "a1"), leftover(tmp_path, "a1", "x7_k2b9q")
    (tmp_path / f".a1.json.{uuid4().hex}").write_text("{")
    running = leftover(tmp_path, "b2")
    finished = tmp_path / "a1"
    finished.mkdir()
    other = leftover(tmp_path, "a1", "mine")
    with FileLock(hidden_lock(tmp_path / "b2")):
        sweep_leftovers(tmp_path)
        assert not gone.exists()
        assert not scratch.exists()
        assert running.is_dir()
        assert finished.is_dir()
        assert other.is_dir()
        assert not list(tmp_path.glob(".a1.json.????????*"))
    sweep_leftovers(tmp_path)
    assert not running.exists()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    folder, outside = tmp_path / "teachers", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (outside / "mine").touch()
    (folder / f".a1.{uuid4().hex}").symlink_to(outside)
    sweep_leftovers(folder, teachers_lock)
    assert (outside / "mine").exists()
