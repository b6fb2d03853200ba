"""Comparing weights of students with what was written, and how to recreate damaged ones."""

from __future__ import annotations

from pathlib import Path

from krscale.digests import check_file


def check_weights(path: Path, rebuild: str) -> None:
    """Compare the weights of a student with what was written; a missing file is left to the loader.

    Args:
        path: File of the weights.
        rebuild: A sentence on how to train the student again.

    Raises:
        DamagedFileError: If the file differs.
    """
    if path.is_file():
        check_file(path, rebuild)


def rebuild_final(path: Path) -> str:
    """Return how to recreate the weights of a final student of a search."""
    return (
        f"Delete {path}; the command that ran the search trains this student again. What it left "
        "in the run folder besides is kept."
    )


def rebuild_refit(folder: Path) -> str:
    """Return how to recreate the weights of a student that was trained on train and validation."""
    return f"Delete the folder {folder}; `krscale pick --refit` trains it again."


def rebuild_student(folder: Path) -> str:
    """Return how to recreate the weights of the student of `krscale distill`."""
    return (
        f"Delete it and {folder / 'student.json'}; the same `krscale distill` trains the student "
        "again, from its last checkpoint where there is one."
    )
