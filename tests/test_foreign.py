"""Reading foreign files: pipes and devices, errors of parsers, texts that cannot be paths."""

from __future__ import annotations

import os
import socket
import tokenize
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from krscale.config import DataConfig, load
from krscale.config.fields import parse_capacity
from krscale.data import prepare_data
from krscale.data.sources.guessing import kind_of
from krscale.data.sources.registry import open_source
from krscale.errors import UserError
from krscale.files import has_checksum, read_json, sha256, write_json
from krscale.foreign import is_file, parsing, path_problem, read_bounded, regular, user_path
from krscale.training.checkpoint import read_weights


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(path))


SPECIAL: list[Callable[[Path], object]] = [
    os.mkfifo, make_socket, Path.mkdir, lambda path: path.symlink_to("/dev/zero"),
    lambda path: path.symlink_to(path.parent), lambda path: path.symlink_to(path),
    lambda path: path.symlink_to("nothing"), lambda path: None,
]  # fmt: skip


@pytest.mark.parametrize("make", SPECIAL)
def test_what_is_no_file_is_never_opened(
    make: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    path = Path("a.pt").absolute()
    make(Path("a.pt"))
    assert not is_file(path)
    with pytest.raises(OSError):  # noqa: PT011 - which one is the system's
        regular(path)
    with pytest.raises(OSError):  # noqa: PT011
        sha256(path)
    with pytest.raises(UserError, match=r"a\.pt"):
        read_json(path)
    with pytest.raises(UserError, match=r"teacher\.weights: .*a\.pt"):
        read_weights(path, "teacher.weights")


def test_a_name_that_can_be_none_is_an_error_of_the_system() -> None:
    with pytest.raises(OSError, match="its name can be none"):
        regular(Path("a\0.arrow"))
    assert not is_file("a\0.arrow")


def test_a_file_longer_than_any_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"null\n")
    assert read_bounded(path, 5) == b"null\n"
    with pytest.raises(OSError, match="it has 5 bytes, more than 4"):
        read_bounded(path, 4)
    os.truncate(path, 10**12)
    assert not has_checksum(path)
    with pytest.raises(UserError, match=r"a\.json: damaged: .*1,000,000,000,000 bytes"):
        read_json(path)


def test_a_folder_in_the_place_of_a_file_that_is_written(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(UserError, match=r"a\.json: a folder stands in the place of a file"):
        write_json(tmp_path / "a.json", {})
    assert list(tmp_path.iterdir()) == [tmp_path / "a.json"]


@pytest.mark.parametrize(
    "error",
    [
        tokenize.TokenError("EOF", (2, 0)), SystemError("x"), MemoryError(), KeyError("a"),
        RecursionError("deep"), UnicodeDecodeError("utf-8", b"\x80", 0, 1, "x"), OSError(5, "no"),
        AssertionError(), torch.cuda.OutOfMemoryError("y\nz"),
    ],
)  # fmt: skip
def test_whatever_a_parser_raises_is_one_line(error: Exception) -> None:
    with pytest.raises(UserError) as found, parsing("x.npy: not readable", "Remove it."):
        raise error
    assert str(found.value).startswith("x.npy: not readable (")
    assert str(found.value).endswith("). Remove it.")
    assert "\n" not in str(found.value)


def test_errors_of_ours_and_the_users_stop_pass() -> None:
    for kind in (UserError, KeyboardInterrupt):
        with pytest.raises(kind, match=r"^mine$"), parsing("x"):
            raise kind("mine")


NO_PATHS = ["a" * 256, "é" * 128, "a/" * 2100, "a\0b", "~nobody-is-called-so/x", "\ud800"]


@pytest.mark.parametrize("text", NO_PATHS)
def test_a_text_that_can_be_no_path(text: str) -> None:
    assert path_problem(text)
    with pytest.raises(UserError, match=r"^--output: .* is no path: "):
        user_path(text, "--output")
    for setting in ("data.path", "data.unlabelled", "storage_path", "teacher.weights"):
        value = text.replace("\0", "\\u0000").encode("utf-8", "ignore").decode()
        if value:
            with pytest.raises(UserError, match=setting):
                load(None, [f'{setting}="{value}"'])


def test_any_other_text_is_a_path() -> None:
    for text in ("", "a" * 255, "~/x", "\udce9", "a\nb", "/", "."):
        assert not path_problem(text)


@pytest.mark.parametrize("text", ["1e99999999", "1e-99999999", "9" * 5000, "1/0", "nan", "1//2"])
def test_a_share_that_takes_for_ever_to_be_computed(text: str) -> None:
    with pytest.raises(ValueError, match="is not a fraction"):
        parse_capacity(text)


@pytest.mark.parametrize(
    "text", [f"a = {'9' * 5000}", "a = " + "[" * 5000, 'a = "\\uD800"', "\xff"]
)
def test_toml_that_python_cannot_hold(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.toml: not a readable TOML file"):
        load(tmp_path / "a.toml")
    with pytest.raises(UserError):
        load(None, [text.replace("a =", "train.seed=")])


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 102530333\n"
READERS = {
    "x.parquet": "parquet", "x.npz": "numpy", "x.csv": "image_list",
    "x.tsv": "image_list",
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_a_pointer_is_not_the_file(name: str, tmp_path: Path) -> None:
    """A clone of a repository without Git LFS has such a pointer in place of every large file."""
    path = tmp_path / name
    path.write_text(POINTER)
    assert is_file(path)
    with pytest.raises(OSError, match="it is a pointer of Git LFS"):
        regular(path)
    with pytest.raises(UserError, match="it is a pointer of Git LFS"):
        kind_of(path)
    with pytest.raises(UserError, match=f"{name}: .*`git lfs pull` brings the file itself"):
        open_source(DataConfig(source=READERS[name], path=str(path))).read(lambda a, b: None)


def test_images_that_are_pointers_are_named(tmp_path: Path) -> None:
    for label in ("ant", "bee"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.jpg").write_text(POINTER)
    config = DataConfig(source="image_folder", path=str(tmp_path))
    with pytest.raises(UserError, match=r"ant/1\.jpg.*`git lfs pull` brings the file itself"):
        prepare_data(config, tmp_path / "cache")
