"""Writes the files of a run for tests."""

from __future__ import annotations

from pathlib import Path


def write(folder: Path, **files: str) -> Path:
    """Write files into a run folder; `__` is a slash, `_dot_` a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = folder / name.replace("_dot_", ".").replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def say(_line: str) -> None:
    """Discard the line."""
