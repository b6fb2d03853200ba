"""What the losses refuse: settings, shapes and types that would give a loss of something else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from krscale.config.fields import check_number
from krscale.errors import UserError
from krscale.models.outputs import sum_to_one


def check_settings(loss: str, **settings: tuple[Any, float]) -> None:
    """Refuse settings that an experiment would refuse: kind and value by name."""
    if torch.compiler.is_compiling():  # a compiler cannot follow the check
        return
    for name, (kind, value) in settings.items():
        check_number(kind, name, value, f"losses.{loss}")


def check_floating(*values: object) -> None:
    """Refuse what is not a tensor of floating point, such as classes in place of logits."""
    for value in values:
        if not isinstance(value, Tensor):
            raise UserError(f"a tensor is needed, not {type(value).__name__}.")
        if not value.is_floating_point():
            raise UserError(f"logits and features are of floating point, not {value.dtype}.")


def check_logits(student: Tensor, teacher: Tensor, labels: object) -> None:
    """Refuse logits that are not both `[B, K]`, probabilities, and labels of another batch.

    Probabilities are seen on a CPU alone: a GPU would have to be waited for.
    """
    check_floating(student, teacher)
    if student.ndim != 2:
        raise UserError(f"logits are [B, K], not {list(student.shape)}.")
    check_same_shape(student, teacher)
    for name, values in (("student", student), ("teacher", teacher)):
        seen = values.device.type == "cpu" and not torch.compiler.is_compiling()
        if seen and len(values) > 1 and sum_to_one(values):
            raise UserError(
                f"{name}_logits are probabilities (each row sums to 1), and logits are needed: "
                "leave the softmax out, or give their logarithm."
            )
    if labels is not None:
        check_labels(labels, len(student))


def check_labels(labels: object, batch_size: int) -> None:
    """Refuse labels that are not `[B]` int64."""
    if not isinstance(labels, Tensor):
        found = type(labels).__name__
    elif labels.shape != (batch_size,) or labels.dtype != torch.int64:
        found = f"{labels.dtype} of shape {list(labels.shape)}"
    else:
        return
    raise UserError(
        f"labels are one int64 class number for each of the {batch_size} samples, not {found}."
    )


def check_same_shape(student: Tensor, teacher: Tensor) -> None:
    """Refuse tensors of two shapes."""
    check_floating(student, teacher)
    # Tensors of other shapes might be broadcast, and give a loss of something else.
    if student.shape != teacher.shape:
        raise UserError(
            f"student and teacher must be of one shape, but they are {list(student.shape)} and "
            f"{list(teacher.shape)}."
        )


def check_same_batch(student: Tensor, teacher: Tensor) -> None:
    """Refuse features that are not `[B, F]` of one batch; `F` may differ."""
    check_floating(student, teacher)
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        raise UserError(
            f"features are [B, F] of one batch, but they are {list(student.shape)} and "
            f"{list(teacher.shape)}."
        )


def checked_stages(
    student: Sequence[Tensor] | Tensor, teacher: Sequence[Tensor] | Tensor
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Return the maps of both networks, stage by stage; refuse those that do not match."""
    if not isinstance(student, Sequence) or not isinstance(teacher, Sequence):
        raise UserError("stages are given as a list, one tensor [B, C, H, W] for each.")
    if len(student) != len(teacher) or not student:
        raise UserError(
            f"every stage of the student needs one of the teacher, but there are {len(student)} "
            f"and {len(teacher)}."
        )
    for own, theirs in zip(student, teacher, strict=True):
        check_floating(own, theirs)
        one_size = own.shape[2:] == theirs.shape[2:]
        # Another batch might be broadcast, and each sample be compared with the same one.
        if own.ndim != 4 or theirs.ndim != 4 or len(own) != len(theirs) or not one_size:
            raise UserError(
                f"maps [B, C, H, W] of one batch and size are needed, but they are "
                f"{list(own.shape)} and {list(theirs.shape)}."
            )
    return student, teacher
