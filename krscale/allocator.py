"""The memory that a training step frees is kept for the next one, where glibc's malloc is in use.

By default malloc asks Linux for the memory of each large tensor and gives it back when the tensor
is freed. Linux clears every page that it hands out, which on a virtual machine took half of the
time of a step of a wide student (benchmarks/freed_memory.py).

It costs memory, up to 1.8 times as much for a wide student: the most that was ever in use stays
with the process, with the gaps between tensors. Other allocators and systems are left as they are.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

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


def set_by_user(environment: Mapping[str, str]) -> bool:
    """Return whether an environment sets malloc to anything else than `VARIABLES` does.

    A process of krscale's may have `VARIABLES` from the one that started it.

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
    """Let processes that are started meanwhile keep what they free, unless the user has set malloc.

    The environment is as before afterwards: what else this process starts is not krscale's.
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
    """Let this process keep what it frees from now on.

    Threads that have begun keep heaps of their own, as they were.

    Returns:
        Whether malloc was told so: not where the user has set it, nor without glibc.
    """
    if set_by_user(os.environ):
        return False
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
