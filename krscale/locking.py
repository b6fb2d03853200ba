"""Locks of what runs share: one process makes it, and what is whole can be used read-only."""

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
    """Hold a lock while something is found or made, once among all processes.

    A storage that cannot be written refuses the file of the lock, too; what is whole there is used
    without one.

    Args:
        path: The file of the lock.
        is_whole: Whether nothing is left to make; asked where the storage cannot be written.
        waiting: Called again and again while another process holds the lock.
        wait_seconds: Between two calls; without a number it is not called.

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
        except Timeout:  # an `OSError` without a number
            waiting()
        except OSError as error:
            if error.errno not in _NOT_WRITABLE or not is_whole():
                raise
            break
    try:
        yield
    finally:
        lock.release()
