"""Errors that a user can act on, worded in one way everywhere.

Every error says what was wrong, where, what is allowed, and the nearest valid name. The commands
(`krscale.tune`, `krscale.distill`, ...) print a `UserError` as one line and exit with code 2;
anything else is a defect of krscale and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KrscaleError(Exception):
    r"""Base of every error that krscale raises on purpose.

    It may quote names of files that are not UTF-8: these are escaped, so that every message can be
    printed and stored.

    Example:
        >>> print(KrscaleError("\udcff.png: not a readable image."))
        \udcff.png: not a readable image.
    """

    def __init__(self, *arguments: object) -> None:
        texts = (utf8_text(each) if isinstance(each, str) else each for each in arguments)
        super().__init__(*texts)


class UserError(KrscaleError):
    """Input that krscale cannot accept: a wrong key, value, file or combination."""


class StorageError(UserError):
    """Storage fails to write or read a file; the message names the file and the cause."""


class DiskFullError(StorageError):
    """There is no space for a file; the message names it."""


class NodeError(UserError):
    """A node of the cluster cannot work on the run; the message names it and the cause."""


class DamagedFileError(UserError):
    """A file of krscale is not what was written; the message names the file and the place."""


class NonFiniteError(UserError):
    """A loss term became NaN or infinite; the message names the term, the epoch and the step."""


class NoGradientError(UserError):
    """A training cannot change the weights of its network, so that nothing would be learnt."""


def reworded(error: UserError, text: str) -> UserError:
    """Return a copy of an error with another text, of the same class and with all its attributes.

    Example:
        >>> reworded(DamagedFileError("--new-data"), "new_data=True")
        DamagedFileError('new_data=True')
    """
    kind = type(error)
    found = kind.__new__(kind, text)  # constructors of subclasses may take other arguments
    found.__dict__.update(error.__dict__)
    return found


def utf8_text(text: str) -> str:
    r"""Return text, such as a path, with the bytes that are not UTF-8 escaped.

    Example:
        >>> print(utf8_text("caf\udce9.png"))
        caf\udce9.png
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message, or the name of its class if it has none.

    Example:
        >>> first_line(ValueError("no PNG\n(more)")), first_line(MemoryError())
        ('no PNG', 'MemoryError')
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """Return the member of `allowed` closest to `name`, or None if nothing resembles it.

    Case is ignored only if no name matches with it.

    >>> nearest("KD", ["kd", "kr"]), nearest("adamW", ["Adam", "AdamW"])
    ('kd', 'AdamW')
    """
    names = list(allowed)
    for written, known in (
        (name, {one: one for one in names}),
        (name.lower(), {one.lower(): one for one in names}),
    ):
        if matches := difflib.get_close_matches(written, known, n=1, cutoff=0.5):
            return known[matches[0]]
    return None


def unknown_name(kind: str, name: str, allowed: Iterable[str], where: str = "") -> UserError:
    """Build the error for a name that is not among the allowed ones.

    Args:
        kind: What the name stands for, in the singular: `"method"`, `"tap"`, `"key"`.
        name: What the user wrote.
        allowed: Every valid name.
        where: The file and key the name came from, e.g. `"jobs/digits.toml: search.methods"`.

    Returns:
        The error, ready to be raised.
    """
    names = sorted(allowed)
    guess = nearest(name, names)
    hint = f" Did you mean {guess!r}?" if guess else ""
    prefix = f"{where}: " if where else ""
    listed = ", ".join(names[:30]) + (", ..." if len(names) > 30 else "")
    return UserError(f"{prefix}unknown {kind} {name!r}.{hint} Allowed: {listed}.")
