"""Find the data files of a folder at every depth, and record what is skipped."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from krscale.errors import UserError, utf8_text

SYSTEM_FOLDERS = frozenset(
    (
        "__macosx",  # added by macOS to archives
        "@eadir",  # thumbnails and indices of Synology
        "#recycle",  # bins of network drives and of Windows
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "__pycache__",
    )
)
"""Folders, in lower case, that systems create among the user's files."""
SYSTEM_FILES = frozenset(("thumbs.db", "desktop.ini", "icon\r"))
_LISTED = 5  # maximum number of files, or kinds of files, that a message names


@dataclass
class Found:
    """What a walk has found.

    Attributes:
        files: Data files, as text: creating a `Path` for each would take most of a walk's time.
        hidden: Hidden or system folders and files, counted by name.
        others: Files that are not data, counted by suffix.
        links: Links to folders, which are not followed.
        broken: Entries named like data files that are not files: their paths, and what they are.
        outside: Data files outside the folders of classes.
        classes: Number of data files in each hidden folder that lies among folders of classes.
    """

    files: list[str] = field(default_factory=list)
    hidden: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    links: list[str] = field(default_factory=list)
    broken: list[tuple[str, str]] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    classes: Counter[str] = field(default_factory=Counter)

    def add(self, other: Found) -> None:
        """Add what another walk has found."""
        self.files += other.files
        self.hidden += other.hidden
        self.others += other.others
        self.links += other.links
        self.broken += other.broken
        self.outside += other.outside
        self.classes += other.classes

    def check(self, where: Path, *, skip: bool = False) -> None:
        """Refuse data files that cannot be opened or are not regular files, such as pipes.

        Args:
            where: Folder that was walked.
            skip: Whether to skip them instead (`data.skip_unreadable`).

        Raises:
            UserError: If there are such files; the message names the first.
        """
        if not self.broken or skip:
            return
        first = "; ".join(
            f"{utf8_text(file)}: {what}" for file, what in sorted(self.broken)[:_LISTED]
        )
        more = "; ..." if len(self.broken) > _LISTED else ""
        raise UserError(
            f"data.path: {where}: {len(self.broken)} of {len(self.broken) + len(self.files)} "
            f"data files are not regular files; remove or replace them, or go on without them with "
            f"data.skip_unreadable = true: {first}{more}"
        )

    def notes(self, where: Path) -> tuple[str, ...]:
        """Return a line on what was skipped, and one more if hidden folders may be classes."""
        parts = []
        if self.hidden:
            parts.append(_counted(self.hidden, "hidden or system folders and files"))
        if self.links:
            names = Counter(Path(link).name for link in self.links)
            parts.append(_counted(names, "links to folders"))
        if self.broken:
            kinds = Counter(kind for _, kind in self.broken)
            parts.append(_counted(kinds, "data files that are no regular files"))
        if self.others:
            parts.append(_counted(self.others, "files of other types"))
        if self.outside:
            names = Counter(Path(file).name for file in self.outside)
            parts.append(_counted(names, "images outside the folders of classes"))
        notes = [f"{where}: passed over: {'; '.join(parts)}."] if parts else []
        if self.classes:
            listed = ", ".join(f"{utf8_text(name)!r} ({n})" for name, n in self.classes.items())
            notes.append(
                f"{where}: folders with images that are not classes, as their names begin with a "
                f"dot: {listed}. Rename them if they should be."
            )
        return tuple(notes)


def is_hidden_folder(name: str) -> bool:
    """Whether a folder is hidden or a system folder: `.cache`, `__MACOSX`."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def walk(
    root: Path, suffixes: frozenset[str], hidden: Callable[[str], bool] = is_hidden_folder
) -> Found:
    """Find the data files below a folder, in no order.

    Args:
        root: Folder to start from; it may itself be hidden, or a link.
        suffixes: Suffixes of data files, in lower case; `.png` also matches `A.PNG`.
        hidden: Returns whether a folder with this name is skipped with all its contents.

    Raises:
        UserError: If a folder cannot be read.
    """
    found, folders = Found(), [str(root)]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    _sort_in(entry, found, folders, suffixes, hidden)
        except OSError as error:
            raise UserError(
                f"data.path: {utf8_text(folder)}: this folder cannot be read ({error.strerror})."
            ) from None
    return found


def _sort_in(
    entry: os.DirEntry[str],
    found: Found,
    folders: list[str],
    suffixes: frozenset[str],
    hidden: Callable[[str], bool],
) -> None:
    name = entry.name
    if entry.is_dir(follow_symlinks=False):
        if hidden(name):
            found.hidden[name] += 1
        else:
            folders.append(entry.path)
    elif name.startswith(".") or name.lower() in SYSTEM_FILES:
        # `._x.png` is written by macOS beside `x.png` on foreign file systems.
        found.hidden["._*" if name.startswith("._") else name] += 1
    elif (suffix := _suffix(name)) not in suffixes:
        if _is_folder(entry):
            found.links.append(entry.path)
        else:
            found.others[suffix or "no suffix"] += 1
    elif kind := _not_a_file(entry):
        found.broken.append((entry.path, kind))
    else:
        found.files.append(entry.path)


def _suffix(name: str) -> str:
    """Return what `Path.suffix` would, without creating a `Path` for each of a million files."""
    _, dot, end = name.rpartition(".")
    return f".{end.lower()}" if dot else ""


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # e.g. circular links
        return False


def _not_a_file(entry: os.DirEntry[str]) -> str | None:
    """Return what an entry is, or None if it is a regular file or a link to one."""
    try:
        if entry.is_file():
            return None
        if entry.is_dir():
            return "a link to a folder"
    except OSError as error:
        return f"cannot be followed ({error.strerror})"
    nothing = entry.is_symlink() and not Path(entry.path).exists()
    return "a link to nothing" if nothing else "a named pipe, a socket or a device"


def _counted(names: Counter[str], kind: str) -> str:
    most = ", ".join(f"{utf8_text(name)} {n}" for name, n in names.most_common(_LISTED))
    more = ", ..." if len(names) > _LISTED else ""
    return f"{kind}: {names.total()} ({most}{more})"
