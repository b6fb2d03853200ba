"""Whether an error of a trial tells of the run's storage, or of its student's own code.

A student is code of the user's own: it may open what is a folder, or fill a disk of its own. Such
an error is its trial's; only one of the run's storage stops the search.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from krscale.foreign import real
from krscale.storage_errors import NO_ROOM, OF_A_NAME

_PACKAGE = Path(__file__).resolve().parents[2]
_FRAME = re.compile(r'^\s*File "(.+?)", line \d+', re.MULTILINE)
_PATH = re.compile(r"\[Errno \d+\] [^'\n]*'([^'\n]+)'(?: -> '([^'\n]+)')?")
_LIBRARY = re.compile(r"/(?:site|dist)-packages/|/lib/python3\.\d+/|^<")
_LITTLE = 2**20
"""Bytes; a disk with less room than this counts as full."""


def is_of_storage(number: int, text: str, root: Path) -> bool:
    """Whether a system's error is one of the run's storage.

    It is if it names a file there, or was raised in krscale's own code. A mistake about a name (a
    folder that is opened as a file) has to be both. An error for want of room that names no file is
    one of the storage where that has no room left.

    Args:
        number: The system's, `OSError.errno`.
        text: The error with its traceback.
        root: Folder of the storage.

    Example:
        >>> is_of_storage(21, "OSError: [Errno 21] Is a directory: '/home/me'", Path("/runs"))
        False
    """
    named = [match[2] or match[1] for match in _PATH.finditer(text)]
    inside = bool(named) and real(Path(named[-1])).is_relative_to(real(root))
    if number in OF_A_NAME:
        return inside and _in_krscale(text)
    return inside or _in_krscale(text) or (not named and number in NO_ROOM and _is_full(root))


def _in_krscale(text: str) -> bool:
    """Whether the last code that is no library's is krscale's own; also without a traceback."""
    for file in reversed(_FRAME.findall(text)):
        _, found, inner = file.rpartition("/krscale/")
        if found and (_PACKAGE / inner).is_file():
            return True
        if not _LIBRARY.search(file):
            return False
    return True


def _is_full(root: Path) -> bool:
    try:
        found = os.statvfs(root)
    except OSError:
        return True
    return found.f_bavail * found.f_frsize < _LITTLE
