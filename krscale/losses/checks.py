"""Checks of the losses: settings, shapes and types that would give an unintended loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from krscale.config.fields import check_number
from krscale.errors import UserError
from krscale.models.outputs import are_probabilities


def check_settings(loss: str, **settings: tuple[Any, float]) -> None:
    """Refuse settings that an experiment would refuse; each maps a name to its kind and value."""
    if torch.compiler.is_compiling():  # the check cannot be compiled
        return
    for name, (kind, value) in settings.items():
        check_number(kind, name, value, f"losses.{loss}")


def check_floating(loss: str, *values: object) -> None:
    """Refuse anything but floating-point tensors, such as class numbers in place of logits."""
    for value in values:
        if not isinstance(value, Tensor):
            raise UserError(f"losses.{loss}: a tensor is needed, not {type(value).__name__}.")
        if not value.is_floating_point():
            raise UserError(
                f"losses.{loss}: logits and features are of floating point, not {value.dtype}."
            )


def check_logits(
    loss: str,
    student: Tensor,
    teacher: Tensor,
    labels: object,
    *,
    lowest_label: int = 0,
    needs_labels: bool = False,
) -> None:
    """Refuse logits of the wrong shape, probabilities, and labels of another batch.

    Both logits must be `[B, K]`. Probabilities are detected on a CPU only: on a GPU, the check
    would force a synchronisation.
    """
    check_floating(loss, student, teacher)
    if student.ndim != 2 or student.shape[1] < 2:
        raise UserError(
            f"losses.{loss}: logits are [B, K] of two classes or more, not {list(student.shape)}."
        )
    check_same_shape(loss, student, teacher)
    for name, values in (("student", student), ("teacher", teacher)):
        if _can_be_seen(values) and len(values) > 1 and are_probabilities(values):
            raise UserError(
                f"losses.{loss}: {name}_logits are probabilities (each row sums to 1, or to 100), "
                "and logits are needed: leave the softmax out, or give their logarithm."
            )
    if labels is not None or needs_labels:
        check_labels(loss, labels, len(student))
        assert isinstance(labels, Tensor)  # noqa: S101 - that was checked
        _check_range(loss, labels, student.shape[1], lowest_label)


def check_finite(loss: str, **logits: Tensor) -> None:
    """Refuse infinite logits for a loss that takes their mean; checked on a CPU only."""
    for name, values in logits.items():
        if _can_be_seen(values) and bool(values.isinf().any()):
            raise UserError(
                f"losses.{loss}: {name} hold infinite values, of which there is no mean and no "
                "deviation."
            )


def _can_be_seen(values: Tensor) -> bool:
    """Return whether values can be inspected: on a CPU, and not while compiling."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def _check_range(loss: str, labels: Tensor, num_classes: int, lowest: int) -> None:
    if not len(labels) or not _can_be_seen(labels):
        return
    found = [int(bound) for bound in labels.aminmax()]
    if wrong := next((label for label in found if not lowest <= label < num_classes), None):
        raise UserError(
            f"losses.{loss}: label {wrong} is out of range: there are {num_classes} classes, so "
            f"{lowest} to {num_classes - 1} is allowed."
        )


def check_labels(loss: str, labels: object, batch_size: int) -> None:
    """Refuse labels that are not `[B]` int64."""
    if not isinstance(labels, Tensor):
        found = type(labels).__name__
    elif labels.shape != (batch_size,) or labels.dtype != torch.int64:
        found = f"{labels.dtype} of shape {list(labels.shape)}"
    else:
        return
    raise UserError(
        f"losses.{loss}: labels are one int64 class number for each of the {batch_size} samples, "
        f"not {found}."
    )


def check_same_shape(loss: str, student: Tensor, teacher: Tensor) -> None:
    """Refuse tensors of different shapes."""
    check_floating(loss, student, teacher)
    # Otherwise the tensors might be broadcast and give an unintended loss.
    if student.shape != teacher.shape:
        raise UserError(
            f"losses.{loss}: student and teacher must be of one shape, but they are "
            f"{list(student.shape)} and {list(teacher.shape)}."
        )


def check_same_batch(loss: str, student: Tensor, teacher: Tensor) -> None:
    """Refuse features that are not `[B, F]` with the same `B`; `F` may differ."""
    check_floating(loss, student, teacher)
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        raise UserError(
            f"losses.{loss}: features are [B, F] of one batch, but they are {list(student.shape)} "
            f"and {list(teacher.shape)}."
        )


def checked_stages(
    loss: str,
    student: Sequence[Tensor] | Tensor,
    teacher: Sequence[Tensor] | Tensor,
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Return the maps of both networks, stage by stage; refuse those that do not match."""
    if not isinstance(student, Sequence) or not isinstance(teacher, Sequence):
        raise UserError(
            f"losses.{loss}: stages are given as a list, one tensor [B, C, H, W] for each."
        )
    if len(student) != len(teacher) or not student:
        raise UserError(
            f"losses.{loss}: every stage of the student needs one of the teacher, but there are "
            f"{len(student)} and {len(teacher)}."
        )
    for own, theirs in zip(student, teacher, strict=True):
        check_floating(loss, own, theirs)
        one_size = own.shape[2:] == theirs.shape[2:]
        # Otherwise one sample might be broadcast, and all others compared with it.
        if own.ndim != 4 or theirs.ndim != 4 or len(own) != len(theirs) or not one_size:
            raise UserError(
                f"losses.{loss}: maps [B, C, H, W] of one batch and size are needed, but they are "
                f"{list(own.shape)} and {list(theirs.shape)}."
            )
    return student, teacher
