"""Reading files that are not krscale's own: whatever is wrong with one is a `UserError`.

Parsers of damaged files raise what they please: numpy a `TokenError` of Python's own grammar, Arrow
a `UnicodeDecodeError` when a name is first looked at. And what is no regular file blocks for ever,
or never ends, as soon as it is opened.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from krscale.errors import KrscaleError, UserError


def regular(path: Path) -> Path:
    """Return a path that is about to be opened, unless it is a named pipe, a device or a folder.

    Args:
        path: The file, or a link to it.

    Raises:
        OSError: If it is missing or no regular file; `strerror` says what it is.

    Example:
        >>> regular(Path("/dev/null"))
        Traceback (most recent call last):
        OSError: [Errno 22] it is a named pipe, a socket or a device: '/dev/null'
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a named pipe, a socket or a device", str(path))
    return path


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
