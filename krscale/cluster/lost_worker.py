"""Describe in one sentence why a worker was lost; Ray's own text fills a page."""

from __future__ import annotations

import re

from ray.exceptions import (
    NodeDiedError,
    OutOfDiskError,
    OutOfMemoryError,
    RayActorError,
    WorkerCrashedError,
)

from krscale.errors import StorageError, UserError

LOST = (RayActorError, WorkerCrashedError, NodeDiedError)
"""The process of a worker ended without raising an exception."""
_ENDED_BY_RAY = re.compile(r"running low on memory\. Memory on the node .*? was (.+?) used / (\S+)")
_NODE_IS_GONE = re.compile(r"because its node has died|NodeDiedError")
SESSION_IS_FULL = (
    "the disk of a node of the cluster is full, where Ray keeps its session (/tmp/ray, unless it "
    "was told otherwise): free some space and start again."
)


def ended_for_memory(text: str) -> str:
    """Describe what Ray's memory monitor did, as half a sentence; empty if it did nothing.

    Example:
        >>> ended_for_memory("the node running low on memory. Memory on the node (IP: 192.0.2.2, "
        ...                  "ID: 12) was 15.2GB used / 16.0GB limit (0.95)")
        'Ray ended its worker, when 15.2GB of the 16.0GB of memory on its node were used'
    """
    if found := _ENDED_BY_RAY.search(text):
        used, limit = found.groups()
        return f"Ray ended its worker, when {used} of the {limit} of memory on its node were used"
    return ""


def cause_of_loss(text: str) -> str:
    """Describe how the process of a worker ended, as half a sentence, based on Ray's text."""
    if _NODE_IS_GONE.search(text):
        return "its node is gone"
    return (
        "the process of its worker ended without an exception: it was killed, for example by the "
        "system for the memory it took, or it crashed"
    )


def lost_worker(error: BaseException, work: str) -> UserError | None:
    """Return the error for work that was lost with its worker; None for other errors.

    Args:
        error: What Ray raised.
        work: The worker's task, for the message.

    Example:
        >>> print(lost_worker(WorkerCrashedError(), "writing the store"))
        writing the store: the process of its worker ended without an exception: it was killed, \
for example by the system for the memory it took, or it crashed.
    """
    if isinstance(error, OutOfDiskError):
        return StorageError(f"{work}: {SESSION_IS_FULL}")
    if isinstance(error, OutOfMemoryError):
        return UserError(f"{work}: {ended_for_memory(str(error)) or 'it ran out of memory'}.")
    if isinstance(error, LOST) and not getattr(error, "actor_init_failed", False):
        return UserError(f"{work}: {cause_of_loss(f'{type(error).__name__}: {error}')}.")
    return None
