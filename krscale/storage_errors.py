"""Storage that cannot be written: full, read-only, failing. One error for those of all libraries.

Python raises an `OSError`, torch a `RuntimeError`, safetensors and SQLite errors of their own, and
Ray Tune an error with the text of a traceback; what they have in common is the system's error
number.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from typing import Any

from krscale.errors import DiskFullError, StorageError

NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than files may be here (ulimit -f)",
}
_CANNOT_WRITE = {
    errno.EROFS: "the storage is read-only",
    errno.EIO: "the disk does not work (input/output error)",
    errno.EISDIR: "a folder stands in the place of a file; move it away",
    errno.ENOTDIR: "a file stands in the place of a folder; move it away",
    errno.ENAMETOOLONG: "the name is longer than names may be here",
    errno.ELOOP: "its links lead in a circle",
    errno.ESTALE: "the network storage has lost this file (stale file handle)",
}
OF_A_NAME = frozenset((errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP))
"""Errors that are as often a mistake of a program as a fault of its storage."""
_DENIED = dict.fromkeys((errno.EACCES, errno.EPERM), "permission denied")
_NUMBER = re.compile(r"\b(?:os error|[Ee]rrno) (\d+)\b")
_OF_SQLITE = (
    ("database or disk is full", errno.ENOSPC),
    ("attempt to write a readonly database", errno.EROFS),
    ("disk I/O error", errno.EIO),
)


def storage_error(
    error: BaseException, path: object = "", *, denied: bool = False
) -> StorageError | None:
    """Return the error to show if storage could not be written; None if something else failed.

    Args:
        error: The exception; those that it was raised from are examined as well.
        path: The file, if the caller has a better name for it than the error.
        denied: Whether a lack of permission counts, too.

    Example:
        >>> import errno
        >>> print(storage_error(OSError(errno.ENOSPC, "No space left on device", "/runs/a.json")))
        /runs/a.json: the disk is full. Nothing is left half written, and what was finished before \
is kept: free some space and start again.
        >>> storage_error(ValueError("no number")) is None
        True
    """
    reasons = NO_ROOM | _CANNOT_WRITE | (_DENIED if denied else {})
    for cause in _chain(error):
        if isinstance(cause, StorageError):
            return cause
        number = _number(cause)
        if number in reasons:
            return _error(number, reasons[number], path or _file_of(cause))
    return None


def error_number(error: BaseException) -> int | None:
    """Return the system's error number by which `storage_error` would recognise an error.

    It is None for a `StorageError`, which needs no number, and for other errors.
    """
    for cause in _chain(error):
        if isinstance(cause, StorageError):
            return None
        if (number := _number(cause)) in NO_ROOM | _CANNOT_WRITE:
            return number
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and the errors that it was raised from, as in a traceback."""
    following: Any = error
    seen: set[int] = set()
    while isinstance(following, BaseException) and id(following) not in seen:
        seen.add(id(following))
        of_ray = getattr(following, "cause", None)  # a `RayTaskError` keeps it there
        if isinstance(of_ray, BaseException):
            # First, because Ray's error may have the same class, with a traceback as its message.
            yield of_ray
        yield following
        context = None if following.__suppress_context__ else following.__context__
        following = of_ray or following.__cause__ or context


def _file_of(error: BaseException) -> Any:
    """Return the file that an error names; for a move, the target."""
    return getattr(error, "filename2", None) or getattr(error, "filename", None) or ""


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if found := _NUMBER.search(text := str(error)):
        return int(found[1])
    return next((number for words, number in _OF_SQLITE if words in text), None)


def _error(number: int, reason: str, path: object) -> StorageError:
    if isinstance(path, bytes):
        path = path.decode(errors="replace")
    where = f"{path}: " if path else ""
    if number in NO_ROOM:
        return DiskFullError(
            f"{where}{reason}. Nothing is left half written, and what was finished before is kept: "
            f"free some space and start again."
        )
    return StorageError(f"{where}{reason}.")
