"""Reading files that are not krscale's own: anything wrong with one is a `UserError`.

Parsers raise many kinds of exceptions for damaged files: numpy a `TokenError` of Python's own
grammar, Arrow a `UnicodeDecodeError` when a name is first accessed. And opening or reading a path
that is not a regular file may block for ever, or never end.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from krscale.errors import KrscaleError, UserError

_LONGEST_NAME, _LONGEST_PATH = 255, 4095
_POINTER, _LONGEST_POINTER = b"version https://git-lfs.github.com/spec/", 1024


def regular(path: Path) -> Path:
    """Return a path that is about to be opened, unless it is a named pipe, a device or a folder.

    Pointers of Git LFS are refused, too: a clone without LFS has them in place of the files.

    Args:
        path: The file, or a link to it.

    Raises:
        OSError: If it is missing or not a regular file; `strerror` describes what it is.

    Example:
        >>> regular(Path("/dev/null"))
        Traceback (most recent call last):
        OSError: [Errno 22] it is a named pipe, a socket or a device: '/dev/null'
    """
    try:
        state = path.stat()
    except ValueError:  # the character NUL
        raise OSError(errno.EINVAL, "its name can be none of a file", str(path)) from None
    if stat.S_ISDIR(state.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(state.st_mode):
        raise OSError(errno.EINVAL, "it is a named pipe, a socket or a device", str(path))
    if state.st_size < _LONGEST_POINTER and is_pointer(path):
        found = "it is a pointer of Git LFS; `git lfs pull` brings the file itself"
        raise OSError(errno.EINVAL, found, str(path))
    return path


def is_pointer(path: Path) -> bool:
    """Whether a regular file begins like a pointer of Git LFS."""
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def read_bounded(path: Path, most: int) -> bytes:
    """Return the content of a file that is read as a whole, unless it is too long.

    A longer file could fill the memory: a sparse file of a terabyte takes no space in an archive.

    Args:
        path: The file, or a link to it.
        most: Largest number of bytes.

    Raises:
        OSError: As `regular`, or if it is longer.
    """
    size = regular(path).stat().st_size
    if size > most:
        raise OSError(errno.EFBIG, f"it has {size:,} bytes, more than {most:,}", str(path))
    return path.read_bytes()


def is_file(path: str | Path) -> bool:
    """Whether there is a regular file, or a link to one; False for an invalid name."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def missing(path: Path, kind: str = "file") -> str:
    """Return the words for a missing file, or for a link to something missing.

    Example:
        >>> missing(Path("/no/teacher.pt"))
        'no such file'
    """
    if path.is_symlink():
        return f"a link to {path.readlink()}, which is not there"
    return f"no such {kind}"


@contextmanager
def parsing(problem: str, advice: str = "") -> Iterator[None]:
    """Turn any exception of a parser about the content of a file into one `UserError`.

    Use it only around calls of a parser, so that a defect of krscale is not blamed on the file.

    Args:
        problem: What is wrong, and where, e.g. `"data.path: x.npz: not a readable .npz file"`.
        advice: A sentence on what to do about it.

    Raises:
        UserError: The problem, and the first line of the reason.

    Example:
        >>> with parsing("x.txt: not a number"):
        ...     int("one")
        Traceback (most recent call last):
        krscale.errors.UserError: x.txt: not a number (invalid literal for int() with base 10: ...
    """
    try:
        yield
    except KrscaleError:
        raise
    except Exception as error:  # noqa: BLE001 - which ones a parser raises is written nowhere
        found = f"{problem} ({reason_of(error)}). {advice}"
        raise UserError(found.strip()) from None


def reason_of(error: Exception) -> str:
    """Return why something could not be read, in one line without a full stop."""
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    first = (text.strip().splitlines() or [""])[0]
    return first[:300].rstrip(".") or type(error).__name__


def real(path: Path) -> Path:
    """Return a path with all links resolved; circular links stay as they are."""
    return Path(os.path.realpath(path))


def path_problem(text: str) -> str:
    """Return why a text cannot be a path on this machine; empty if it can.

    Example:
        >>> path_problem("~/images"), path_problem("a" * 300)
        ('', 'a name of 300 bytes, where file systems take 255')
    """
    if "\0" in text:
        return "it holds the character NUL"
    try:
        longest = max(len(part) for part in os.fsencode(text).split(b"/"))
        if longest > _LONGEST_NAME:
            return f"a name of {longest} bytes, where file systems take {_LONGEST_NAME}"
        if len(os.fsencode(text)) > _LONGEST_PATH:
            return f"it is longer than {_LONGEST_PATH:,} bytes"
        Path(text).expanduser()
    except UnicodeEncodeError:
        return "it holds characters that cannot be encoded"
    except RuntimeError:
        return "no such user"
    return ""


def user_path(text: str | Path, where: str) -> Path:
    """Return what a user wrote as a path, with `~` resolved.

    Args:
        text: What the user wrote.
        where: The option or argument, for the error, e.g. `"--output"`.

    Raises:
        UserError: If it cannot be a path.
    """
    if problem := path_problem(str(text)):
        raise UserError(f"{where}: {str(text)[:100]!r} is no path: {problem}.")
    return Path(text).expanduser()
