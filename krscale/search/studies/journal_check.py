"""Check that a journal is as it was written: each line by its checksum, all lines by a replay.

Optuna silently drops entries that it cannot assign, for example a value of a trial that does not
exist. A search that continued from there would have lost trials without an error.
"""

from __future__ import annotations

import json
import re
import shlex
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend

from krscale.errors import DamagedFileError
from krscale.files import MOST_OF_A_LOG, damaged
from krscale.foreign import read_bounded
from krscale.search.studies.trial_spec import key_of

_FROM_A_COPY = "Restore it from a copy; without it, no search can go on in this folder."
_CHECKSUM = re.compile(rb',"crc":(\d+)\}$')
_CREATE_STUDY, _DELETE_STUDY, _CREATE_TRIAL, _END_TRIAL = 0, 1, 4, 6
"""Optuna's numbers for entries that begin or end a study or a trial."""
_COMPLETE = 1
"""Optuna's number for the state of a trial with results."""
_NEEDED = {
    _CREATE_STUDY: ("study_name", "directions"), _DELETE_STUDY: ("study_id",),
    _CREATE_TRIAL: ("study_id",), _END_TRIAL: ("trial_id",),
}  # fmt: skip
"""Fields of an entry that are read here, by its kind."""

ATTRIBUTES: dict[str, type | tuple[type, ...]] = {
    # of studies
    "ended_by": str, "given_up": dict, "in_use": int, "lost_students": list, "space": dict,
    "spent_seconds": (int, float), "version": int,
    # of trials
    "alone": bool, "continues": int, "epoch": (int, float), "error": str, "forbidden": str,
    "interrupted": (str, bool), "last_epoch": int, "num_lost": int, "retry_of": int, "seed": int,
    "stopped": str, "training": int, "transferred_from": str,
}  # fmt: skip
"""User attributes that krscale keeps with studies and trials, and their types."""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_numbers(value: object) -> bool:
    found = (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ["-"]
    )
    return all(map(_is_number, found))


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "directions": (lambda value: bool(value) and _are_numbers(value), "numbers"),
    "intermediate_value": (_is_number, "a number"),
    "intermediate_values": (_are_numbers, "numbers"),
    "param_value_internal": (_is_number, "a number"),
    "params": (_are_numbers, "numbers"),
    "state": (lambda value: type(value) is int, "a number"),
    "step": (lambda value: type(value) is int, "a number"),
    "study_name": (lambda value: isinstance(value, str), "text"),
    "param_name": (lambda value: isinstance(value, str), "text"),
    "value": (lambda value: value is None or _is_number(value), "a number"),
    "values": (lambda value: value is None or _are_numbers(value), "numbers"),
}
"""Fields that Optuna reads without checks -> a check of the value, and its description."""


def encode_line(log: dict[str, Any]) -> bytes:
    """Return an entry of the journal as a line, with the checksum that `open_checked` verifies."""
    text = json.dumps(log, separators=(",", ":")).encode()
    return b'%s,"crc":%d}\n' % (text[:-1], zlib.crc32(text))


def open_checked(path: Path, backend: BaseJournalBackend) -> JournalStorage:
    """Open a journal, unless Optuna could not read it or would misread it.

    Lines of older versions of krscale, and of other programs, have no checksum; they must still be
    entries that fit together.

    Args:
        path: The journal. A last line without a line break is ignored: it is being written, or its
            writer died.
        backend: Optuna's backend for the file.

    Raises:
        DamagedFileError: With the first damaged line, and the part that can still be used.
    """
    entries = _check_lines(path)
    try:
        return JournalStorage(backend)
    except Exception as error:
        first = _first_refused(entries)
        if not _replay(entries[: first + 1]):
            raise  # the content of the file is not the cause
        reason = _worded(error)
        raise _damage(path, first + 1, entries[:first], len(entries), reason) from None


def check_journal(path: Path) -> None:
    """Compare every line of a journal with its checksum, without opening it.

    Raises:
        DamagedFileError: As for `open_checked`.
    """
    _check_lines(path)


def _check_lines(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a journal; each is checked on its own and for what it refers to."""
    try:
        lines = read_bounded(path, MOST_OF_A_LOG).split(b"\n")[:-1]
    except OSError as error:
        raise damaged(
            path, f"it cannot be read ({error.strerror or error})", _FROM_A_COPY
        ) from None
    entries: list[dict[str, Any]] = []
    begun = _Begun()
    for number, line in enumerate(lines, start=1):
        try:
            entry = _decode(line)
            _check_fields(entry)
            begun.check(entry)
        except (ValueError, KeyError, RecursionError) as error:
            raise _damage(path, number, entries, len(lines), _worded(error)) from None
        entries.append(entry)
        begun.add(entry, number)
    for name, study in begun.names.items():  # a deleted study may be another program's
        try:
            key_of(name)
        except ValueError as error:
            number = begun.lines[study]
            raise _damage(path, number, entries[: number - 1], len(lines), str(error)) from None
    return entries


class _Begun:
    """The studies and trials that the entries so far have created.

    Attributes:
        names: Name of each study that is not deleted -> its number.
        lines: Number of a study -> line of the journal that creates it.
        num_objectives: Number of a study -> number of its objectives.
        studies: Number of a trial -> number of its study.
    """

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.lines: list[int] = []
        self.num_objectives: list[int] = []
        self.studies: list[int] = []

    def add(self, entry: dict[str, Any], line: int) -> None:
        """Record what an entry, which has passed `check`, creates or deletes."""
        kind = entry["op_code"]
        if kind == _CREATE_STUDY and entry["study_name"] not in self.names:
            self.names[entry["study_name"]] = len(self.lines)
            self.lines.append(line)
            self.num_objectives.append(len(entry["directions"]))
        elif kind == _DELETE_STUDY:
            self.names = {name: at for name, at in self.names.items() if at != entry["study_id"]}
        elif kind == _CREATE_TRIAL:
            self.studies.append(entry["study_id"])

    def check(self, entry: dict[str, Any]) -> None:
        """Refuse an entry of a study or trial that no earlier line created, or of the wrong shape.

        Raises:
            ValueError: With the reason.
        """
        for name, begun in (("study_id", self.lines), ("trial_id", self.studies)):
            if name not in entry:
                continue
            if type(entry[name]) is not int or not 0 <= entry[name] < len(begun):
                raise ValueError(f"{name} {entry[name]!r} was never begun")
        kind = entry["op_code"]
        if kind in (_CREATE_TRIAL, _END_TRIAL) and entry.get("state") == _COMPLETE:
            study = entry["study_id"] if kind == _CREATE_TRIAL else self.studies[entry["trial_id"]]
            values = entry.get("values")
            found = int(entry.get("value") is not None) if values is None else len(values)
            if found != self.num_objectives[study]:
                raise ValueError(
                    f"a complete trial has {found} values, its study has "
                    f"{self.num_objectives[study]} objectives"
                )


class _Lines(BaseJournalBackend):
    """Entries in memory, for Optuna to replay."""

    def __init__(self, entries: Sequence[dict[str, Any]]) -> None:
        self.entries = entries

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the entries from a given number on."""
        yield from self.entries[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Not supported: nothing is written."""
        raise NotImplementedError


def _decode(line: bytes) -> dict[str, Any]:
    """Return the entry of a line.

    Raises:
        ValueError: If it is not an entry.
        KeyError: If it has no kind.
    """
    found = _CHECKSUM.search(line)
    if found and zlib.crc32(line[: found.start()] + b"}") != int(found[1]):
        raise ValueError("its checksum is another")
    entry = json.loads(line.decode("utf-8"))
    if not isinstance(entry, dict):
        raise ValueError("it is no entry")
    if type(entry["op_code"]) is not int:
        raise ValueError("its op_code is no number")
    return entry


def _check_fields(entry: dict[str, Any]) -> None:
    """Refuse an entry whose fields do not have the types that Optuna and krscale expect."""
    for field, (is_right, expected) in _FIELDS.items():
        if field in entry and not is_right(entry[field]):
            raise ValueError(f"{field} = {entry[field]!r} is not {expected}")
    for needed in _NEEDED.get(entry["op_code"], ()):
        if needed not in entry:
            raise KeyError(needed)
    _check_attributes(entry)


def _check_attributes(entry: dict[str, Any]) -> None:
    """Refuse attributes that krscale has not written, such as a table in place of a count."""
    for field in ("user_attr", "user_attrs"):
        kept = entry.get(field, {})
        if not isinstance(kept, dict):
            raise ValueError(f"its {field} is no table")
        for name, value in kept.items():
            expected = ATTRIBUTES.get(name, (int, float) if "/" in name else object)
            # In Python, True is an int, but it is not a count.
            if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
                raise ValueError(f"{name} = {value!r} is not what krscale keeps there")


def _replay(entries: Sequence[dict[str, Any]]) -> str:
    """Let Optuna read the entries; return why it cannot, empty if it can."""
    try:
        JournalStorage(_Lines(entries))
    except Exception as error:  # noqa: BLE001 - whatever Optuna raises, the journal is the cause
        return _worded(error)
    return ""


def _first_refused(entries: Sequence[dict[str, Any]]) -> int:
    """Return the index of the entry that Optuna cannot read."""
    low, high = 0, len(entries)  # Optuna can read `low` entries, but not `high`
    while high - low > 1:
        middle = (low + high) // 2
        if _replay(entries[:middle]):
            high = middle
        else:
            low = middle
    return low


def _worded(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"its field {error.args[0]!r} is missing"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start + 1} is not text"
    if isinstance(error, json.JSONDecodeError):
        return f"column {error.colno}: {error.msg}"
    return str(error) or type(error).__name__


def _damage(
    path: Path, line: int, whole: Sequence[dict[str, Any]], num_lines: int, reason: str
) -> DamagedFileError:
    num_trials = sum(entry["op_code"] == _CREATE_TRIAL for entry in whole)
    file, aside = (shlex.quote(str(p)) for p in (path, path.with_name(f"{path.name}.damaged")))
    return damaged(
        path,
        f"line {line} of {num_lines}: {reason}",
        f"Restore it from a copy. Or go on with the {len(whole)} lines before it, which hold "
        f"{num_trials} trials: cp {file} {aside} && head -n {len(whole)} {aside} > {file}",
    )
