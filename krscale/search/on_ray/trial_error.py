"""Classify the error of a failed trial: the user's mistake, its memory, its worker or storage."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ray.exceptions import OutOfDiskError, OutOfMemoryError

from krscale.cluster.lost_worker import LOST, SESSION_IS_FULL, cause_of_loss, ended_for_memory
from krscale.errors import StorageError
from krscale.search.on_ray.whose_storage import is_of_storage
from krscale.search.studies.retries import Cause
from krscale.storage_errors import error_number, storage_error

_MEMORY = re.compile(
    r"\b(torch\.)?(cuda\.)?OutOfMemoryError\b"  # torch's, and Ray's by name
    r"|\bMemoryError\b"  # Python's, numpy's
    r"|can't allocate memory|DefaultCPUAllocator"  # torch's on the CPU is a RuntimeError
    r"|running low on memory"  # Ray's memory monitor
)
"""The word OOM is not included: Ray names it among the possible causes for any worker's death."""
_LOST_RANK = re.compile(r"\bLostRankError: ")
"""The error of `group.py`, which Ray passes on as the error of a task or of an actor's start."""
_NODE = re.compile(r"\(pid=\d+, ip=([^,)\s]+)")
_NOT_OF_THE_TRIAL = re.compile(
    r"^(?:[\w.]+\.)?(?:DiskFullError|NodeError|StorageError): (.+)", re.MULTILINE
)
"""Errors of the storage or of a node; any other trial would meet them, too."""


@dataclass(frozen=True)
class TrialError:
    """A trial's error.

    Attributes:
        text: The whole error, with its traceback.
        cause: The cause, if the error is no fault of the trial itself; else None.
        storage: The error of storage that could not be written, after which the search cannot
            continue; None for all other errors.
    """

    text: str
    cause: Cause | None
    storage: StorageError | None = None

    @classmethod
    def of(cls, error: BaseException | None, text: str, storage: Path) -> TrialError:
        """Classify an error by its exception, or by its text if Ray kept nothing else.

        Args:
            error: The exception.
            text: The exception with its traceback.
            storage: Folder of the run's storage; a failure to write elsewhere is the trial's own.
        """
        if found := _of_storage(error, text, storage):
            return cls(text, None, found)
        if isinstance(error, OutOfMemoryError) or _MEMORY.search(_ending(text)):
            return cls(text, Cause.MEMORY)
        # Ray reports an exception in an actor's first trial as its death; it is the trial's own.
        if isinstance(error, LOST) and not getattr(error, "actor_init_failed", False):
            return cls(text, Cause.WORKER)
        if _LOST_RANK.search(_ending(text)):
            return cls(text, Cause.WORKER)
        return cls(text, None)

    @property
    def sentence(self) -> str:
        """Why the trial ended: the line with its exception, or why its worker is gone.

        Ray's own text for a worker that died fills a page.
        """
        if self.cause is Cause.MEMORY and (sentence := ended_for_memory(self.text)):
            return sentence
        if self.cause is Cause.WORKER:
            return cause_of_loss(self.text)
        lines = _ending(self.text).splitlines()
        return lines[-1].strip() if lines else "no error text"


def _of_storage(error: BaseException | None, text: str, root: Path) -> StorageError | None:
    """Return the error of storage that a worker could not write; None for other errors."""
    # First, since it names the file: Ray's error of an actor that did not start has only a number.
    if named := _NOT_OF_THE_TRIAL.search(_ending(text)):
        return StorageError(_on_node(text) + named[1])
    for each in filter(None, (error, Exception(_ending(text)))):
        found, number = storage_error(each), error_number(each)
        if found and (number is None or is_of_storage(number, text, root)):
            return found
    if isinstance(error, OutOfDiskError) or "OutOfDiskError" in text:
        return StorageError(SESSION_IS_FULL)
    return None


def _on_node(text: str) -> str:
    """Return the node of an error, as the start of a sentence: each node may have its own disk.

    If a worker of a group failed, its node is named after that of the first worker, which passes
    its error on.
    """
    nodes = _NODE.findall(text)
    return f"on the node {nodes[-1]}: " if nodes and not nodes[-1].startswith("127.") else ""


def _ending(text: str) -> str:
    """Return the last exception: its line, and the lines of its message that follow it."""
    lines = [line for line in text.splitlines() if line.strip()]
    traceback = [i for i, line in enumerate(lines) if line.startswith("  File ")]
    return "\n".join(lines[traceback[-1] + 1 :] if traceback else lines)
