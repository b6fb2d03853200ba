"""What becomes of the memory that a training step frees: glibc's malloc is told to keep it.

As it is set by default, malloc asks Linux for each of a step's large tensors anew and gives it back
at once. Linux hands out memory page by page and clears every page first, which took half of the
time of a step of a wide student on two virtual cores, and more where two workers did it at the same
time (docs/log.md). With memory kept, the next step finds its tensors' memory in place.

It costs memory: the most that was ever in use stays with the process. Other allocators, of which
`LD_PRELOAD` loads one, and other systems are left as they are.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping

VARIABLES = {
    # No tensor gets a mapping of its own, which is undone when it is freed.
    "MALLOC_MMAP_MAX_": "0",
    # What is free at the heap's end stays.
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    # One heap for all threads. The heap of a thread, such as the one in which Ray Train runs its
    # loop, holds at most 64 MB; what is larger would be mapped whatever the first line says.
    "MALLOC_ARENA_MAX": "1",
}
"""What glibc reads when a process starts, and no other library at all."""
_PARAMETERS = {-4: 0, -1: -1, -8: 1}
"""The same for `mallopt`: numbers of parameters, from glibc's malloc.h, and their values."""


def is_users(environment: Mapping[str, str]) -> bool:
    """Return whether the user has set malloc themselves, in any way.

    What `VARIABLES` has come to an environment from a parent process is not the user's.

    Example:
        >>> is_users({"MALLOC_ARENA_MAX": "4"}), is_users(VARIABLES), is_users({})
        (True, False, False)
    """
    return "glibc.malloc" in environment.get("GLIBC_TUNABLES", "") or any(
        name.startswith("MALLOC_") and VARIABLES.get(name) != value
        for name, value in environment.items()
    )


def set_for_children() -> None:
    """Set the variables for processes that this one starts, unless the user has set any."""
    if not is_users(os.environ):
        os.environ.update(VARIABLES)


def keep_freed_memory() -> bool:
    """Let this process, and those that it starts, keep what they free.

    Returns:
        Whether malloc was told so: not where the user has set it, nor without glibc.
    """
    if is_users(os.environ):
        return False
    set_for_children()
    mallopt = getattr(_libc(), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(number, value) for number, value in _PARAMETERS.items())


def give_back() -> None:
    """Give back to the system what is free now, as after a teacher, before others need it."""
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None
