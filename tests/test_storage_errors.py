"""Messages where storage cannot be written, for every writer and every kind of error."""

import errno
import os
import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from ray.exceptions import RayTaskError
from ray.tune.error import TuneError

from krscale.cli.common import run_command
from krscale.errors import DiskFullError, StorageError, UserError
from krscale.files import append_whole, new_folder, write_json
from krscale.search.studies.journal import Journal
from krscale.storage_errors import storage_error
from krscale.tracking.spool import Event, Spool
from krscale.training.checkpoint import save_checkpoint, save_weights

SMALL = 20_000
"""Bytes that a file may have in these tests."""


@contextmanager
def small_files() -> Iterator[None]:
    """Let no file of this process grow beyond `SMALL`: real errors, without root."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def arrow_file(path: Path) -> None:
    table = pa.table({"a": list(range(SMALL))})
    with new_folder(path) as folder:
        file = folder / "a.arrow"
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)


WRITERS: tuple[Callable[[Path], None], ...] = (
    lambda path: write_json(path, "x" * SMALL),
    lambda path: save_checkpoint(path, {"a": torch.zeros(SMALL)}),
    lambda path: save_weights(path, {"a": torch.zeros(SMALL)}),
    arrow_file,
)


@pytest.mark.parametrize("write", WRITERS, ids=("json", "torch", "safetensors", "arrow"))
def test_every_writer_says_what_it_could_not_write_and_leaves_nothing(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    with small_files(), pytest.raises(DiskFullError) as full:
        write(tmp_path / "a.safetensors")
    assert "a.safetensors" in str(full.value)
    assert "larger than files may be here" in str(full.value)
    assert list(tmp_path.iterdir()) == []


def test_a_journal_and_a_spool_hold_whole_lines_and_go_on_with_room(tmp_path: Path) -> None:
    journal, spool = Journal(tmp_path / "journal.log"), Spool(tmp_path / "spool.jsonl")
    large = {"op_code": 7, "worker_id": "w", "text": "x" * (SMALL // 2)}
    event = Event("log", "kr", 7, {"metrics": {}, "step": 0, "tags": {"a": "x" * (SMALL // 2)}})
    with small_files():
        journal.storage._backend.append_logs([large])
        with pytest.raises(OSError, match="File too large") as full:
            journal.storage._backend.append_logs([large])
        assert full.value.filename == str(tmp_path / "journal.log")
        spool.append(event)
        with pytest.raises(OSError, match="File too large"):
            spool.append(event)
    for path in (tmp_path / "journal.log", tmp_path / "spool.jsonl"):
        content = path.read_bytes()
        assert content.endswith(b"\n")
        assert len(content) < SMALL
    spool.append(event)
    journal.storage._backend.append_logs([large])
    assert [found for found, _ in spool.read(0)][-1] == event
    spool.close()


def raised_from(cause: Exception, error: Exception) -> Exception:
    """Return `error` as it is when raised while `cause` is handled."""
    error.__context__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "-", "/runs/a"), "/runs/a: the disk is full"),
        (OSError(errno.EDQUOT, "-", b"/runs/a"), "/runs/a: the disk quota is used up"),
        (OSError(errno.EROFS, "-", "/tmp/b", None, "/runs/a"), "/runs/a: the storage is read-only"),
        (OSError(errno.EIO, "-"), "the disk does not work"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (sqlite3.OperationalError("attempt to write a readonly database"), "read-only"),
        (sqlite3.OperationalError("database or disk is full"), "the disk is full"),
        (raised_from(OSError(errno.ENOSPC, "-", "/a"), TuneError("Traceback")), "/a: the disk is"),
        (raised_from(StorageError("/b is full"), TuneError("Traceback")), "/b is full"),
        (
            RayTaskError("f", "text", OSError(errno.EROFS, "-", "/c")),
            "/c: the storage is read-only",
        ),
        (
            RayTaskError("f", "Traceback", DiskFullError("/d is full")).as_instanceof_cause(),
            "/d is full",
        ),
        (
            RayTaskError("f", "OSError: [Errno 28]", OSError(28, "-", "/e")).as_instanceof_cause(),
            "/e: the disk is full",
        ),
    ],
)
def test_one_sentence_for_whatever_was_raised(error: Exception, said: str) -> None:
    assert str(storage_error(error)).startswith(said) or said in str(storage_error(error))


def test_what_is_no_fault_of_the_storage_is_none() -> None:
    suppressed = raised_from(OSError(errno.ENOSPC, "-"), ValueError("no number"))
    suppressed.__suppress_context__ = True
    for error in (suppressed, FileNotFoundError(errno.ENOENT, "-"), ValueError("28")):
        assert storage_error(error) is None
    denied = PermissionError(errno.EACCES, "-", "/a")
    assert storage_error(denied) is None
    assert str(storage_error(denied, denied=True)) == "/a: permission denied."


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EACCES])
def test_a_command_ends_with_one_line_and_2(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(argv: object) -> int:
        raise OSError(number, os.strerror(number), "/runs/digits/facts.json")

    assert run_command(command, []) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("krscale: error: /runs/digits/facts.json: ")


def test_a_users_mistake_stays_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    def command(argv: object) -> int:
        raise raised_from(OSError(errno.EACCES, "-"), UserError("data.path: not readable"))

    assert run_command(command, []) == 2
    assert capsys.readouterr().err == "krscale: error: data.path: not readable\n"


def test_what_was_not_appended_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"first\n")
    with path.open("ab", buffering=0) as file, small_files():
        with pytest.raises(OSError, match="File too large"):
            append_whole(file.fileno(), b"x" * (SMALL + 1), path)
        append_whole(file.fileno(), b"last\n", path)
    assert path.read_bytes() == b"first\nlast\n"
