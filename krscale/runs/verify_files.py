"""Comparing one file with what was written, for a line of `krscale verify`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from krscale.digests import check_file
from krscale.errors import UserError
from krscale.files import has_checksum, read_json

State = Literal["ok", "damaged", "unverifiable"]


@dataclass(frozen=True)
class Finding:
    """The result of comparing a file.

    Attributes:
        path: The file.
        state: `ok`: as it was written; `damaged`: missing or changed; `unverifiable`: written by an
            older krscale, which kept no checksum of it.
        message: What is wrong, and how to recreate the file; empty if it is `ok`.
    """

    path: Path
    state: State
    message: str = ""


def look(path: Path, compare: Callable[[], bool], again: str) -> Finding:
    """Compare a file and return the finding.

    Args:
        path: The file.
        compare: Returns whether there was anything to compare it with; raises if it differs.
        again: A sentence on how to recreate the file.
    """
    try:
        if compare():
            return Finding(path, "ok")
    except (UserError, OSError) as error:
        return Finding(path, "damaged", str(error))
    older = "no checksum was kept of it, as in krscale before `verify`"
    return Finding(path, "unverifiable", f"{path}: {older}. For one: {again}")


def look_at_json(path: Path, again: str, read: Callable[[], object] | None = None) -> Finding:
    """Compare a JSON file with its checksum.

    Args:
        path: The file.
        again: A sentence on how to recreate the file.
        read: Reads it as the program does, to refuse invalid values.
    """

    def compare() -> bool:
        read_json(path, again)
        if read is not None:
            read()
        return has_checksum(path)

    return look(path, compare, again)


def look_at_binary(path: Path, again: str) -> Finding:
    """Compare any other file with its digest."""
    if not path.is_file():
        return missing(path, again)
    return look(path, lambda: check_file(path, again), again)


def missing(path: Path, again: str) -> Finding:
    """Return the finding for a required file that is missing."""
    return Finding(path, "damaged", f"{path}: this file is missing. {again}")


def folders_in(parent: Path) -> Iterator[Path]:
    """Yield the folders in a folder, except those that are being written."""
    if parent.is_dir():
        entries = (entry for entry in parent.iterdir() if entry.is_dir())
        yield from sorted(entry for entry in entries if not entry.name.startswith("."))
