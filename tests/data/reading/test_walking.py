"""Files that are not data are passed over at every depth, with a note; nothing hangs."""

import os
from pathlib import Path

import pytest

from krscale.data.reading.walking import is_hidden_folder, walk
from krscale.errors import UserError

PNG = frozenset((".png",))


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def found_in(root: Path) -> list[str]:
    return sorted(os.path.relpath(file, root) for file in walk(root, PNG).files)


@pytest.mark.parametrize(
    "folder",
    [
        ".ipynb_checkpoints",
        ".cache",
        "__MACOSX",
        "@eaDir",
        "#recycle",
        "$RECYCLE.BIN",
        "lost+found",
    ],
)
@pytest.mark.parametrize("depth", ["", "one/", "one/two/"])
def test_hidden_folders_at_every_depth(tmp_path, folder, depth):
    touch(tmp_path, "a.png", "one/two/b.PNG", f"{depth}{folder}/c.png", f"{depth}{folder}/d/e.png")
    assert found_in(tmp_path) == ["a.png", "one/two/b.PNG"]
    (note,) = walk(tmp_path, PNG).notes(tmp_path)
    assert f"hidden or system folders and files: 1 ({folder} 1)" in note


def test_the_root_may_be_hidden(tmp_path):
    touch(tmp_path, ".cache/data/a.png")
    assert found_in(tmp_path / ".cache") == ["data/a.png"]


@pytest.mark.parametrize("name", ["_background_noise_", "__a", "train", "a.b", "a.png"])
def test_names_of_classes_are_not_hidden(tmp_path, name):
    assert not is_hidden_folder(name)
    touch(tmp_path, f"{name}/x.png")
    assert found_in(tmp_path) == [f"{name}/x.png"]


def test_files_passed_over_are_counted(tmp_path):
    touch(tmp_path, "a.png", "._a.png", "b/._b.png", "Thumbs.db", "b/x.txt", "y.txt", "README")
    assert found_in(tmp_path) == ["a.png"]
    (note,) = walk(tmp_path, PNG).notes(tmp_path)
    assert "files: 3 (._* 2, Thumbs.db 1)" in note
    assert "other types: 3 (.txt 2, no suffix 1)" in note


def test_nothing_is_said_of_nothing(tmp_path):
    touch(tmp_path, "a.png", "b/c.png")
    assert walk(tmp_path, PNG).notes(tmp_path) == ()


@pytest.mark.timeout(20)
def test_what_is_no_file_is_refused_whole(tmp_path):
    touch(tmp_path, "a.png", "deep/b.png", "elsewhere.txt")
    os.mkfifo(tmp_path / "deep/pipe.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "dir.png").symlink_to("deep")
    (tmp_path / "link.png").symlink_to("elsewhere.txt")
    found = walk(tmp_path, PNG)
    assert len(found.files) == 3
    with pytest.raises(UserError, match="4 of 7 data files are not regular files") as caught:
        found.check(tmp_path)
    message = str(caught.value)
    assert "pipe.png: a named pipe" in message
    assert "gone.png: a link to nothing" in message
    assert "loop.png: cannot be followed" in message
    assert "dir.png: a link to a folder" in message


def test_links_to_folders_are_said_and_not_followed(tmp_path):
    touch(tmp_path, "a.png", "b/c.png")
    (tmp_path / "b/up").symlink_to(tmp_path)
    assert found_in(tmp_path) == ["a.png", "b/c.png"]
    (note,) = walk(tmp_path, PNG).notes(tmp_path)
    assert "links to folders: 1 (up 1)" in note


def test_a_folder_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    touch(tmp_path, "b/c.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"b: this folder cannot be read \(Permission denied\)"):
        walk(tmp_path, PNG)
