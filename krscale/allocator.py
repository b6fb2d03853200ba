"""Keeping the memory that a training step frees for the next one, with glibc's malloc.

By default, malloc requests the memory of each large tensor from Linux and returns it when the
tensor is freed. Linux clears every page that it hands out. On a virtual machine this took half of
the time of a step of a wide student (benchmarks/freed_memory.py).

Keeping it costs memory, up to 1.8 times as much for a wide student: the process retains the maximum
that was ever in use, with gaps between the tensors. Other allocators and systems are not changed.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

VARIABLES = {
    # No tensor gets its own memory mapping, which would be removed when the tensor is freed.
    "MALLOC_MMAP_MAX_": "0",
    # Free memory at the end of the heap is kept.
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    # One heap for all threads. The heap of a thread, such as the one in which Ray Train runs its
    # loop, holds at most 64 MB; larger tensors would be mapped despite the first setting.
    "MALLOC_ARENA_MAX": "1",
}
"""Environment variables that glibc reads when a process starts; other libraries ignore them."""
_PARAMETERS = {-4: 0, -1: -1, -8: 1}
"""The same settings for `mallopt`: numbers of parameters from glibc's malloc.h, with values."""


def set_by_user(environment: Mapping[str, str]) -> bool:
    """Return whether an environment sets malloc differently from `VARIABLES`.

    A process of krscale may have inherited `VARIABLES` from its parent process.

    Example:
        >>> set_by_user({"MALLOC_ARENA_MAX": "4"}), set_by_user(VARIABLES), set_by_user({})
        (True, False, False)
    """
    return "glibc.malloc" in environment.get("GLIBC_TUNABLES", "") or any(
        name.startswith("MALLOC_") and VARIABLES.get(name) != value
        for name, value in environment.items()
    )


@contextmanager
def set_for_children() -> Iterator[None]:
    """Make processes started in this context keep freed memory, unless the user has set malloc.

    The environment is restored afterwards, as later child processes may not be krscale's.
    """
    if set_by_user(os.environ):
        yield
        return
    before = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    os.environ.update(VARIABLES)
    try:
        yield
    finally:
        for name in VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(before)


def keep_freed_memory() -> bool:
    """Make this process keep freed memory from now on.

    Threads that were started before keep their own heaps unchanged.

    Returns:
        Whether malloc was set; False if the user has set it, and without glibc.
    """
    if set_by_user(os.environ):
        return False
    mallopt = getattr(_libc(), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(number, value) for number, value in _PARAMETERS.items())


def give_back() -> None:
    """Return free memory to the system, e.g. after training a teacher, for other processes."""
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None
