"""Writing files so that a crash, or a full disk, never leaves a partial file under its real name.

And reading them again: anything wrong with a file that krscale wrote is a `DamagedFileError`.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from krscale.errors import DamagedFileError, StorageError, UserError
from krscale.exchange import exchange
from krscale.foreign import read_bounded, regular
from krscale.storage_errors import storage_error

_OF_ITS_CONTENT = (
    LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError
)  # fmt: skip
"""Exceptions raised for unexpected content; torch raises a `RuntimeError` for a wrong shape."""


CHECKSUM = "sha256_of_above"
"""Last field of every JSON object that krscale writes."""
_LAST_LINE = re.compile(rb',\n  "([^"]*)": "([0-9a-f]{64})"\n\}\n\Z')
_TAIL_BYTES = 128
_MOST_JSON = 256 * 1024**2
MOST_OF_A_LOG = 2 * 1024**3
"""Most bytes of a journal or spool, which are read as a whole; a trial of 12 epochs takes 5 kB."""


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then fsync it and rename it to `path`.

    Raises:
        DiskFullError: If there is no space; nothing is left behind.
    """
    temporary = _beside(path)
    with _room_on_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _room_on_disk(path):
            write(temporary)
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
    finally:
        with suppress(OSError):  # the storage may have become read-only, which is reported already
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, atomically.

    Raises:
        DiskFullError: As `write_atomic`.
    """
    write_atomic(path, lambda temporary: _write_text(temporary, text))


def write_json(path: Path, content: Any, *, checksum: bool = True) -> None:
    """Write JSON atomically, readable by people and stable under diff.

    The last field of an object is the SHA-256 of everything above it, so that `read_json` detects
    any byte that has changed since.

    Args:
        path: The file.
        content: JSON-serialisable content.
        checksum: False if the content was read from a file without a checksum: adding one would
            suggest that the content had been compared.
    """
    if isinstance(content, Mapping):
        content = {key: value for key, value in content.items() if key != CHECKSUM}
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    if checksum and isinstance(content, Mapping) and content:
        above = text.removesuffix("\n}\n")
        digest = _hexdigest(above.encode()).decode()
        text = f'{above},\n  "{CHECKSUM}": "{digest}"\n}}\n'
    write_text(path, text)


def read_json(path: Path, rebuild: str = "") -> Any:
    """Read what `write_json` wrote.

    A file of an older krscale has no checksum, and is read as it is.

    Args:
        path: The file.
        rebuild: A sentence for the error: what can still be used, and how to recreate the file.

    Raises:
        DamagedFileError: If it is missing, not JSON, or not what was written; names the file and,
            if it is not JSON, the line.
    """
    try:
        raw = read_bounded(path, _MOST_JSON)
        text = raw.decode("utf-8")
        return _checked(raw, json.loads(text, parse_constant=_refuse_constant))
    except FileNotFoundError:
        raise DamagedFileError(_joined(f"{path}: this file is missing.", rebuild)) from None
    except OSError as error:
        raise damaged(path, f"it cannot be read ({error.strerror or error})", rebuild) from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}: {error.msg}" if text else "it is empty"
        raise damaged(path, place, rebuild) from None
    except (ValueError, RecursionError) as error:
        raise damaged(path, _reason(error), rebuild) from None


def has_checksum(path: Path) -> bool:
    """Whether a JSON file ends in a checksum; one of an older krscale does not."""
    with regular(path).open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        return _LAST_LINE.search(file.read()) is not None


@contextmanager
def reading(path: Path, rebuild: str = "") -> Iterator[None]:
    """Turn any exception about the content of a file that is being read into one error.

    Args:
        path: The file, for the error.
        rebuild: As for `read_json`.

    Raises:
        DamagedFileError: Instead of a `KeyError`, `TypeError`, `ValueError` or similar.
    """
    try:
        yield
    except UserError:
        raise
    except _OF_ITS_CONTENT as error:
        raise damaged(path, _reason(error), rebuild) from None


def damaged(path: Path, place: str, rebuild: str = "") -> DamagedFileError:
    """Build the error for a file of krscale that is not what was written.

    Args:
        path: The file.
        place: What is wrong, and where in the file.
        rebuild: As for `read_json`.
    """
    return DamagedFileError(_joined(f"{path}: damaged: {place}.", rebuild))


def set_aside(path: Path) -> Path:
    """Rename a damaged file to `NAME.damaged`, `NAME.damaged-2` and so on; return the new path."""
    for number in itertools.count(1):
        aside = path.with_name(f"{path.name}.damaged" + (f"-{number}" if number > 1 else ""))
        if not aside.exists():
            path.rename(aside)
            return aside
    raise AssertionError("unreachable")


def follow(path: Path, before: Path, now: Path) -> Path:
    """Return where a file is after the folder around it was moved or copied.

    Args:
        path: Where it was, absolute.
        before: Where the folder was then.
        now: Where the folder is now.

    Returns:
        The same place within `now`, unless nothing is there and the old place still exists; `path`
        itself if it was not in the folder.
    """
    if before == now or not path.is_relative_to(before):
        return path
    moved = now / path.relative_to(before)
    return moved if moved.exists() or not path.exists() else path


def append_whole(descriptor: int, content: bytes, path: Path) -> None:
    """Append all of the content or nothing to a file that is open for appending.

    Args:
        descriptor: Descriptor of the open file.
        content: What to append.
        path: The file, for the error.

    Raises:
        OSError: If there is no space; the file is unchanged.
    """
    size, rest = os.fstat(descriptor).st_size, memoryview(content)
    try:
        while rest:  # a nearly full disk writes a part, and fails on the next write
            rest = rest[os.write(descriptor, rest) :]
    except OSError as error:
        with suppress(OSError):
            os.ftruncate(descriptor, size)
        number = error.errno or errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error


@contextmanager
def new_folder(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends without an exception.

    A `path` that exists is replaced in one step: a crash at any moment leaves the old folder or the
    new one under that name. (If the file system cannot do this, the old folder is moved aside first
    and deleted last, and a crash in between may leave no folder under that name.)

    Args:
        path: The folder.
        temporary: The temporary folder, beside `path`; a new name by default.

    Raises:
        DiskFullError: If there is no space; nothing is left behind.
    """
    temporary = temporary or _beside(path)
    try:
        with _room_on_disk(path):
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.rglob("*"):
                sync(file)
            sync(temporary)
            aside = temporary.with_name(temporary.name + ".old")
            if not (path.exists() and exchange(temporary, path)):
                if path.exists():
                    path.replace(aside)
                temporary.replace(path)
            sync(path.parent)
            shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with regular(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path) -> Path:
    """Return an unused name in the same folder.

    `tempfile` is not used, because only the owner may read its files: on the storage of a cluster,
    other users read what is written here, as far as the umask allows.
    """
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


@contextmanager
def _room_on_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        if found := storage_error(error, path):
            raise found from error
        if isinstance(error, OSError) or os.statvfs(path.parent).f_bavail > 0:
            raise
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # torch does not report it
        raise storage_error(full, path) or full from error


def _joined(problem: str, rebuild: str) -> str:
    return f"{problem} {rebuild}".strip()


def _checked(raw: bytes, content: Any) -> Any:
    """Return the content of a JSON file without its checksum, after comparing the checksum.

    Raises:
        ValueError: If it differs, or the line that holds it is damaged itself.
    """
    if not isinstance(content, dict):
        return content
    start = max(0, len(raw) - _TAIL_BYTES)
    line = _LAST_LINE.search(raw, start)
    is_right = line is not None and _hexdigest(raw[: line.start()]) == line[2]
    if line and is_right and line[1] == CHECKSUM.encode():
        return {key: value for key, value in content.items() if key != CHECKSUM}
    if is_right or CHECKSUM in content:
        raise ValueError("its content is not what was written (its SHA-256 is another)")
    return content


def _hexdigest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which is no number")


def _reason(error: Exception) -> str:
    """Return what is wrong with the content of a file, as the end of a sentence."""
    if isinstance(error, KeyError):
        return f"the field {error.args[0]!r} is missing" if error.args else "a field is missing"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not text ({error.reason})"
    if isinstance(error, RecursionError):
        return "its content is nested too deeply"
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
