"""Decide whether an error of a trial comes from the run's storage or from its student's own code.

A student is the user's code: it may open a folder as a file, or fill a disk of its own. Such an
error concerns only its trial; only an error of the run's storage stops the search.
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
    """Return whether a system error comes from the run's storage.

    It does if it names a file there or was raised in krscale's own code. An error about a name (a
    folder opened as a file) must satisfy both. An error for lack of space that names no file comes
    from the storage if the storage has no space left.

    Args:
        number: The system's error number, `OSError.errno`.
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
    """Return whether the last code outside libraries is krscale's own; True without a traceback."""
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
