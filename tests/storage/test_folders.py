"""Folders of the cache on machines that share no disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from krscale.errors import StorageError
from krscale.leftovers import sweep_leftovers
from krscale.storage import room
from krscale.storage.folders import fetched, present, publish
from krscale.storage.objects import Objects
from krscale.storage.room import limit_room

Machine = Callable[[str], Path]


def made(path: Path, content: bytes = b"12345678") -> Path:
    """Make a folder with a file, a file in a subfolder, and a hidden file."""
    (path / "parts").mkdir(parents=True)
    (path / "whole.arrow").write_bytes(content)
    (path / "parts" / "0.arrow").write_bytes(content)
    (path / ".hidden").write_bytes(b"")
    return path


def released(monkeypatch: pytest.MonkeyPatch) -> None:
    """Act as if all processes that held folders had ended."""
    for descriptor in room._held.values():
        os.close(descriptor)
    monkeypatch.setattr(room, "_held", {})


def test_a_folder_of_no_storage_stays_as_it_is(tmp_path: Path) -> None:
    folder = made(tmp_path / "cache" / "data" / "a")
    publish(folder)
    assert present(folder)
    assert not present(tmp_path / "cache" / "data" / "b")
    assert [path.name for path in folder.parent.iterdir()] == ["a"]


def test_another_machine_fetches_what_was_sent(machine: Machine) -> None:
    folder = made(machine("one") / "cache/data/a")
    publish(folder)
    fetched = machine("two") / "cache/data/a"
    assert present(fetched)
    assert (fetched / "parts" / "0.arrow").read_bytes() == b"12345678"
    assert not (fetched / ".hidden").exists()
    assert not present(fetched.with_name("b"))


def test_what_has_no_index_is_not_there(machine: Machine, uri: str) -> None:
    publish(made(machine("one") / "cache/data/a"))
    Objects.open(uri).delete("cache/data/a.index.json")
    assert not present(machine("two") / "cache/data/a")


def test_what_was_changed_in_the_storage_is_refused(machine: Machine, uri: str) -> None:
    publish(made(machine("one") / "cache/data/a"))
    Objects.open(uri).write("cache/data/a/parts/0.arrow", b"12345679")
    fetched = machine("two") / "cache/data/a"
    with pytest.raises(StorageError, match=r"0\.arrow is not what was sent"):
        present(fetched)
    assert not fetched.exists()
    Objects.open(uri).write("cache/data/a.index.json", b"{")
    with pytest.raises(StorageError, match=r"a\.index\.json is not what was written"):
        present(fetched)


def test_a_folder_that_grew_is_sent_again_and_no_more_than_that(
    machine: Machine, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, sent = made(machine("one") / "cache/teachers/a"), list[str]()
    upload = Objects.upload

    def counted(self: Objects, key: str, path: Path) -> str:
        sent.append(key)
        return upload(self, key, path)

    monkeypatch.setattr(Objects, "upload", counted)
    publish(folder)
    publish(folder)
    (folder / "probes.safetensors").write_bytes(b"1")
    publish(folder)
    assert len(sent) == 3
    fetched = machine("two") / "cache/teachers/a"
    assert present(fetched)
    assert (fetched / "probes.safetensors").is_file()


@pytest.mark.parametrize("content", [b"12345678", b"of another start"])
def test_of_two_machines_that_make_a_folder_at_once_the_first_that_sends_it_counts(
    machine: Machine, uri: str, content: bytes
) -> None:
    """Otherwise trials on nodes that fetch it now and later use different ones, under one name."""
    one, two = machine("one") / "cache/teachers/a", machine("two") / "cache/teachers/a"
    assert not present(two)
    made(two, content)
    machine("one")
    assert publish(made(one))
    before = Objects.open(uri).list("cache/teachers")
    machine("two")
    assert publish(two) == (content == b"12345678")
    assert (two / "whole.arrow").read_bytes() == b"12345678"
    assert Objects.open(uri).list("cache/teachers") == before
    (two / "parts" / "1.arrow").write_bytes(b"more of it")
    assert publish(two), "what grows from what was fetched is sent"
    assert Objects.open(uri).read("cache/teachers/a/parts/1.arrow") == b"more of it"


def test_the_least_recently_opened_goes_and_none_that_is_open(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate("abc"):
        publish(made(machine("one") / "cache/data" / name, b"x" * (500 + number)))
    cache = machine("two") / "cache/data"
    limit_room(2100e-9)
    assert present(cache / "a")
    released(monkeypatch)
    assert present(cache / "b")  # held from here on
    os.utime(cache / ".b.used", (1, 1))
    assert present(cache / "c")
    assert not (cache / "a").exists()
    assert (cache / "b").is_dir()
    limit_room(1e-9)
    assert present(cache / "a")  # b and c are in use: more than the limit is kept
    assert (cache / "b").is_dir()
    assert (cache / "c").is_dir()


def test_what_a_full_disk_has_no_room_for_replaces_the_least_recently_opened(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate("abcd"):
        publish(made(machine("one") / "cache/data" / name, b"x" * (500 + number)))
    cache = machine("two") / "cache/data"
    for number, name in enumerate("abc"):
        assert present(cache / name)
        os.utime(cache / f".{name}.used", (number, number))
    released(monkeypatch)
    whole = sum(file.stat().st_size for file in (cache / "c").rglob("*.arrow"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=whole))
    assert present(cache / "d")  # two bytes larger than what is free, so that one must go
    assert [(cache / name).is_dir() for name in "abc"] == [False, True, True]


def test_folders_that_are_made_here_make_room_too(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = machine("one") / "cache" / "stores"
    limit_room(50e-9)  # three folders of 16 bytes
    for name in "abcd":
        publish(made(cache / name))
        released(monkeypatch)
    assert [(cache / name).is_dir() for name in "abcd"] == [False, True, True, True]
    limit_room(1e-9)
    publish(made(cache / "e"))
    assert [path.name for path in cache.iterdir() if path.is_dir()] == ["e"]


def test_what_the_storage_has_not_is_never_removed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(made(machine("one") / "cache/data/a"))
    own = made(machine("two") / "cache/data/own")
    released(monkeypatch)
    limit_room(1e-9)
    assert present(own.with_name("a"))
    assert own.is_dir()


def test_what_was_begun_here_is_replaced_by_what_another_has_sent(
    machine: Machine, uri: str
) -> None:
    """An interrupted store is incomplete under its name; trials of others need the whole one."""
    half = made(machine("one") / "cache/stores/a", b"half")
    assert present(half), "nobody has sent it: it is gone on with"
    whole = made(machine("two") / "cache/stores/a")
    publish(whole)
    machine("one")
    found = fetched(whole, uri)
    assert found == half
    assert (found / "whole.arrow").read_bytes() == b"12345678"
    assert not [path for path in half.parent.iterdir() if path.name.endswith("unfetched")]


def test_whoever_makes_a_folder_leaves_those_that_are_fetched(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that prepares other data removes killed processes' leftovers; a fetch takes minutes."""
    publish(made(machine("one") / "cache/data/a"))
    folder, download = machine("two") / "cache/data/a", Objects.download

    def swept(self: Objects, key: str, path: Path) -> str:
        digest = download(self, key, path)
        sweep_leftovers(folder.parent)
        return digest

    monkeypatch.setattr(Objects, "download", swept)
    assert present(folder)
    assert (folder / "whole.arrow").is_file()


@pytest.mark.parametrize("name", ["a", "b"])
def test_what_a_killed_process_has_fetched_goes_with_the_next_fetch(
    machine: Machine, name: str
) -> None:
    for each in "ab":
        publish(made(machine("one") / "cache/data" / each))
    cache = machine("two") / "cache/data"
    made(room.unfetched(cache / "a"), b"half")
    made(room.unfetched(machine("two") / "cache/stores/c"), b"half")
    assert present(cache / name)
    left = [path.name for path in cache.parent.rglob("*.unfetched")]
    assert not left
    assert (cache / name / "whole.arrow").read_bytes() == b"12345678"


def test_a_folder_that_is_gone_is_fetched_again(machine: Machine) -> None:
    folder = made(machine("one") / "cache/data/a")
    publish(folder)
    shutil.rmtree(folder)
    assert present(folder)
    assert (folder / "parts" / "0.arrow").is_file()
