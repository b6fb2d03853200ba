"""An atomic exchange of two paths, where the system supports it."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_AT_THE_WORKING_FOLDER = -100
_EXCHANGE = 2


def exchange(one: Path, other: Path) -> bool:
    """Exchange the contents of two existing paths; neither is missing at any moment.

    Returns:
        Whether it was done: only Linux supports it, and not on every file system (not on NFS).
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # another system, or an old C library
        return False
    at, paths = _AT_THE_WORKING_FOLDER, [os.fsencode(path) for path in (one, other)]
    return bool(renameat2(at, paths[0], at, paths[1], _EXCHANGE) == 0)
