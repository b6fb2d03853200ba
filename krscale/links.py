"""Links in the folder of a run: none is followed, neither to read, nor to write, nor to delete.

krscale makes none there. Writing through a link would create, overwrite or empty a file wherever
the maker of the link wants; so a run folder with a link is refused before anything is opened.
"""

from __future__ import annotations

import os
from pathlib import Path

from krscale.errors import UserError, utf8_text

_LISTED = 3
_OPTUNAS_LOCK = "journal.log.lock"
"""A link with which Optuna locks a journal; Optuna makes and removes it, but never follows it."""


def refuse_links(folder: Path) -> None:
    """Refuse a run folder that holds links to files or folders.

    The folder itself may be reached through a link, as a storage on another disk often is.

    Args:
        folder: The folder of a run; it need not exist.

    Raises:
        UserError: Naming the first links, and where they lead.

    Example:
        >>> import tempfile
        >>> refuse_links(Path(tempfile.mkdtemp()))
    """
    found = sorted(_links(str(folder)))
    if not found:
        return
    listed = "; ".join(
        f"{utf8_text(path)} -> {utf8_text(_target(path))}" for path in found[:_LISTED]
    )
    more = f"; and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    one = len(found) == 1
    raise UserError(
        f"{folder}: {'a link' if one else 'links'} in the folder of a run, where krscale makes "
        f"none: {listed}{more}. What is written or deleted there would be so elsewhere. Put the "
        f"{'file or folder' if one else 'files or folders'} itself in the place of the link, or "
        f"remove it; a link to the whole run folder or storage is allowed."
    )


def _links(root: str) -> list[str]:
    found, folders = [], [root]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        found += [entry.path] * (entry.name != _OPTUNAS_LOCK)
                    elif entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue  # removed by another process meanwhile, or it cannot be opened
    return found


def _target(path: str) -> str:
    try:
        return str(Path(path).readlink())
    except OSError:
        return "?"
