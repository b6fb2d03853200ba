"""Reading files that are not krscale's own: whatever is wrong with one is a `UserError`.

Parsers of damaged files raise what they please: numpy a `TokenError` of Python's own grammar, Arrow
a `UnicodeDecodeError` when a name is first looked at. And what is no regular file blocks for ever,
or never ends, as soon as it is opened.
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

    Nor is a pointer of Git LFS the file in whose place a clone without LFS leaves it.

    Args:
        path: The file, or a link to it.

    Raises:
        OSError: If it is missing or no regular file; `strerror` says what it is.

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
    """Whether a regular file begins as the pointers of Git LFS do."""
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def read_bounded(path: Path, most: int) -> bytes:
    """Return the content of a file that is read as a whole, if it is as long as such a file can be.

    Another would fill the memory: a sparse file of a terabyte takes no room in an archive.

    Args:
        path: The file, or a link to it.
        most: Bytes.

    Raises:
        OSError: As `regular`, or if it is longer.
    """
    size = regular(path).stat().st_size
    if size > most:
        raise OSError(errno.EFBIG, f"it has {size:,} bytes, more than {most:,}", str(path))
    return path.read_bytes()


def is_file(path: str | Path) -> bool:
    """Whether there is a regular file, or a link to one; a name that can be none is no error."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def missing(path: Path, kind: str = "file") -> str:
    """Say that there is nothing under a path, or that it is a link which leads nowhere.

    Example:
        >>> missing(Path("/no/teacher.pt"))
        'no such file'
    """
    if path.is_symlink():
        return f"a link to {path.readlink()}, which is not there"
    return f"no such {kind}"


@contextmanager
def parsing(problem: str, advice: str = "") -> Iterator[None]:
    """Turn whatever a parser raises over the content of a file into one `UserError`.

    For the calls of a parser alone, so that no mistake of krscale's own is taken for the file's.

    Args:
        problem: What is wrong, and where, e.g. `"data.path: x.npz: not a readable .npz file"`.
        advice: What to do about it, a sentence.

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
    """Return where a path leads through all links; those in a circle stay as they are."""
    return Path(os.path.realpath(path))


def path_problem(text: str) -> str:
    """Say why a text can be no path on this machine; nothing where it can.

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
    """Return what a user wrote as a path, `~` resolved.

    Args:
        text: As it was written.
        where: What it was written for, e.g. `"--output"`.

    Raises:
        UserError: If it can be no path.
    """
    if problem := path_problem(str(text)):
        raise UserError(f"{where}: {str(text)[:100]!r} is no path: {problem}.")
    return Path(text).expanduser()
