"""Damaged files of a run's record: they are set aside and reported, and never end the training.

Readable events of a spool are kept; all of them are sent again, and MLflow recognises what it has.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, with_config

from krscale.config import read_record
from krscale.errors import DamagedFileError
from krscale.files import MOST_OF_A_LOG, damaged, set_aside, write_atomic
from krscale.foreign import is_file, read_bounded
from krscale.tracking.spool import Event, Operation, encode_event, without_checksum

Say = Callable[[str], None]
Record = TypeVar("Record", bound=BaseModel)


class _Content(BaseModel):
    """Fields that an operation needs; other fields belong to other versions of krscale."""

    model_config = ConfigDict(strict=True)


class _Start(_Content):
    name: str
    parent: str | None
    tags: dict[str, str]
    params: dict[str, str]
    datasets: list[dict[str, Any]] = []


class _Log(_Content):
    metrics: dict[str, float]
    step: int
    tags: dict[str, str]


class _Artifact(_Content):
    path: str
    to: str


class _Registration(_Content):
    name: str
    alias: str
    tags: dict[str, str]
    description: str


class _Model(_Content):
    path: str
    registration: _Registration


class _End(_Content):
    status: Literal["COMPLETE", "PRUNED", "FAIL", "RUNNING"]


_CONTENTS: dict[Operation, type[_Content]] = {
    "start": _Start, "log": _Log, "artifact": _Artifact, "model": _Model, "end": _End,
}  # fmt: skip
_EVENT = TypeAdapter(with_config(ConfigDict(extra="forbid"))(Event))
_GOES_ON = (
    "The next start, or krscale sync, takes these lines out: they are lost for MLflow, and nothing "
    "else is. To keep them, restore the file from a copy."
)


def read_or_set_aside(path: Path, kind: type[Record], say: Say, lost: str) -> Record | None:
    """Read a small file of the record; return None if it is missing or damaged.

    Args:
        path: The file; renamed to `NAME.damaged` if it cannot be read.
        kind: The model of its content.
        say: Takes a line for the user.
        lost: The consequence of its loss, as a sentence.
    """
    if not os.path.lexists(path):
        return None
    try:
        return read_record(path, kind)
    except DamagedFileError as error:
        say(f"{error} It was set aside as {set_aside(path).name}. {lost}")
        return None


def make_room(path: Path, say: Say, lost: str) -> None:
    """Set aside whatever is at a path and is not a file: opening a named pipe would block.

    Args:
        path: The file that is about to be written; it need not exist.
        say: Takes a line for the user.
        lost: The consequence of its loss, as a sentence.
    """
    if os.path.lexists(path) and not is_file(path):
        say(f"{path}: damaged: it is no file. It was set aside as {set_aside(path).name}. {lost}")


def mend_spool(path: Path, say: Say) -> bool:
    """Remove unreadable lines from a spool; the original file is kept beside it.

    Args:
        path: The spool; it need not exist. An incomplete last line is left to `Spool`.
        say: Takes a line for the user.

    Returns:
        Whether positions in the spool have changed.
    """
    if not os.path.lexists(path):
        return False
    if reason := _unreadable(path):
        say(
            f"{path}: damaged: {reason}. It was set aside as {set_aside(path).name}; what was "
            "recorded and not sent to MLflow is lost."
        )
        return True
    lines, reasons = _lines(path)
    if not any(reasons):
        return False
    first = next(number for number, reason in enumerate(reasons) if reason)
    whole = [line for line, reason in zip(lines, reasons, strict=True) if not reason]
    if reasons[0]:
        name = Event("spool", uuid.uuid4().hex, 0)
        whole.insert(0, encode_event(name).rstrip(b"\n"))
    number = sum(map(bool, reasons))
    aside = set_aside(path)
    content = b"".join(line + b"\n" for line in whole)
    write_atomic(path, lambda temporary: _write(temporary, content))
    renamed = (
        " Its first line, which named it, is lost: MLflow may keep what it has and get all of it "
        "once more."
    )
    say(
        f"{path}: damaged: line {first + 1}: {reasons[first]}. {number} of {len(lines)} events "
        f"are lost for MLflow; the others are kept, and the file as it was is {aside.name}."
        + renamed
        * bool(reasons[0])
    )
    return True


def check_spool(path: Path) -> None:
    """Refuse a spool with a line that is not what was written, except an incomplete last line.

    Raises:
        DamagedFileError: Naming the first such line.
    """
    if reason := _unreadable(path):
        raise damaged(path, reason, _GOES_ON)
    lines, reasons = _lines(path)
    for number, reason in enumerate(reasons, start=1):
        if reason:
            raise damaged(path, f"line {number} of {len(lines)}: {reason}", _GOES_ON)


def _lines(path: Path) -> tuple[list[bytes], list[str]]:
    """Return the complete lines of a spool, and why each is not an event; empty if it is one."""
    lines = read_bounded(path, MOST_OF_A_LOG).split(b"\n")[:-1]
    reasons = [_problem(line) for line in lines]
    if lines and not reasons[0] and json.loads(lines[0])["op"] != "spool":
        reasons[0] = "it does not name the spool"
    return lines, reasons


def _unreadable(path: Path) -> str:
    """Return why a path cannot be a spool, regardless of its content; empty if it can."""
    if not is_file(path):
        return "it is no file"
    size = path.stat().st_size
    return f"it has {size:,} bytes, more than {MOST_OF_A_LOG:,}" if size > MOST_OF_A_LOG else ""


def _problem(line: bytes) -> str:
    """Return why a line is not an event; empty if it is one."""
    try:
        event = _EVENT.validate_json(without_checksum(line), strict=True)
        kind = _CONTENTS.get(event.op)
        if kind is not None:
            kind.model_validate(event.content)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        return ": ".join(filter(None, (".".join(map(str, found["loc"])), found["msg"])))
    except ValueError as error:
        return str(error)
    return ""


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)
