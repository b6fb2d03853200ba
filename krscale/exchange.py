"""Two names of one folder exchange what they stand for, in one step, where the system can."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_AT_THE_WORKING_FOLDER = -100
_EXCHANGE = 2


def exchange(one: Path, other: Path) -> bool:
    """Let two paths that exist exchange their content, so that at no moment either is missing.

    Returns:
        Whether it was done: Linux alone can, and not on every file system (NFS cannot).
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # another system, or an old C library
        return False
    at, paths = _AT_THE_WORKING_FOLDER, [os.fsencode(path) for path in (one, other)]
    return bool(renameat2(at, paths[0], at, paths[1], _EXCHANGE) == 0)
