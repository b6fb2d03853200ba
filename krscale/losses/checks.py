"""What the losses refuse: settings, shapes and types that would give a loss of something else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from krscale.config.fields import check_number
from krscale.errors import UserError


def check_settings(loss: str, **settings: tuple[Any, float]) -> None:
    """Refuse settings that an experiment would refuse: kind and value by name."""
    if torch.compiler.is_compiling():  # a compiler cannot follow the check
        return
    for name, (kind, value) in settings.items():
        check_number(kind, name, value, f"losses.{loss}")


def check_logits(student: Tensor, teacher: Tensor, labels: Tensor | None) -> None:
    """Refuse logits that are not both `[B, K]`, and labels of another batch."""
    if student.ndim != 2:
        raise UserError(f"logits are [B, K], not {list(student.shape)}.")
    check_same_shape(student, teacher)
    if labels is not None:
        check_labels(labels, len(student))


def check_labels(labels: Tensor, batch_size: int) -> None:
    """Refuse labels that are not `[B]` int64."""
    if labels.shape != (batch_size,) or labels.dtype != torch.int64:
        raise UserError(
            f"labels are one int64 class number for each of the {batch_size} samples, not "
            f"{labels.dtype} of shape {list(labels.shape)}."
        )


def check_same_shape(student: Tensor, teacher: Tensor) -> None:
    """Refuse tensors of two shapes."""
    # Tensors of other shapes might be broadcast, and give a loss of something else.
    if student.shape != teacher.shape:
        raise UserError(
            f"student and teacher must be of one shape, but they are {list(student.shape)} and "
            f"{list(teacher.shape)}."
        )


def check_same_batch(student: Tensor, teacher: Tensor) -> None:
    """Refuse features that are not `[B, F]` of one batch; `F` may differ."""
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        raise UserError(
            f"features are [B, F] of one batch, but they are {list(student.shape)} and "
            f"{list(teacher.shape)}."
        )


def checked_stages(
    student: Sequence[Tensor] | Tensor, teacher: Sequence[Tensor] | Tensor
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Return the maps of both networks, stage by stage; refuse those that do not match."""
    if isinstance(student, Tensor) or isinstance(teacher, Tensor):
        raise UserError("stages are given as a list, one tensor [B, C, H, W] for each.")
    if len(student) != len(teacher) or not student:
        raise UserError(
            f"every stage of the student needs one of the teacher, but there are {len(student)} "
            f"and {len(teacher)}."
        )
    for own, theirs in zip(student, teacher, strict=True):
        if own.ndim != 4 or theirs.ndim != 4 or own.shape[2:] != theirs.shape[2:]:
            raise UserError(
                f"maps [B, C, H, W] of one size are needed, but they are {list(own.shape)} and "
                f"{list(theirs.shape)}."
            )
    return student, teacher
