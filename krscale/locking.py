"""Locks of what runs share: one process makes it; when finished, it can be used read-only."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
_FOR_EVER = -1.0


@contextmanager
def locked(
    path: Path,
    is_whole: Callable[[], bool],
    waiting: Callable[[], None] = lambda: None,
    wait_seconds: float = _FOR_EVER,
) -> Iterator[None]:
    """Hold a lock while something is found or made, by one process at a time.

    On a storage that cannot be written, the lock file cannot be made either; what is finished there
    is used without a lock.

    Args:
        path: The lock file.
        is_whole: Returns whether nothing is left to make; called if the storage cannot be written.
        waiting: Called repeatedly while another process holds the lock.
        wait_seconds: Time between two calls of `waiting`; by default, it is not called.

    Raises:
        OSError: If the lock cannot be made, and something is left to make.

    Example:
        >>> import tempfile
        >>> with locked(Path(tempfile.mkdtemp()) / ".lock", lambda: False):
        ...     pass
    """
    lock = FileLock(path)
    while True:
        try:
            lock.acquire(timeout=wait_seconds)
            break
        except Timeout:  # is an `OSError`, too, without a number
            waiting()
        except OSError as error:
            if error.errno not in _NOT_WRITABLE or not is_whole():
                raise
            break
    try:
        yield
    finally:
        lock.release()
