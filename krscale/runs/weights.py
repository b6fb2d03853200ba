"""Weights of students compared with what was written, and how damaged ones come back."""

from __future__ import annotations

from pathlib import Path

from krscale.digests import check_file


def check_weights(path: Path, rebuild: str) -> None:
    """Compare the weights of a student with what was written; whoever loads them finds them gone.

    Args:
        path: Their file.
        rebuild: What trains the student again, a sentence.

    Raises:
        DamagedFileError: If they are something else.
    """
    if path.is_file():
        check_file(path, rebuild)


def rebuild_final(path: Path) -> str:
    """Say how the weights of a final student of a search come back."""
    return (
        f"Delete {path}; the command that ran the search trains this student again. What it left "
        "in the run folder besides is kept."
    )


def rebuild_refit(folder: Path) -> str:
    """Say how the weights of a student that was trained on train and validation come back."""
    return f"Delete the folder {folder}; `krscale pick --refit` trains it again."


def rebuild_student(folder: Path) -> str:
    """Say how the weights of the student of `krscale distill` come back."""
    return (
        f"Delete it and {folder / 'student.json'}; the same `krscale distill` trains the student "
        "again, from its last checkpoint where there is one."
    )
