"""Batches of images and labels, as a data loader of anybody's gives them: read and checked."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from krscale.errors import UserError

MAX_ALIKE = 1000
"""Images at the beginning that are kept in memory at most, until one differs from the first."""


def read_pair(batch: Any, where: str) -> tuple[Tensor, Tensor]:
    """Return images and labels of a loader's batch.

    Raises:
        UserError: If the batch is not a sequence that begins with two tensors.
    """
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        images, labels = batch[0], batch[1]
        if isinstance(images, Tensor) and isinstance(labels, Tensor):
            return images, labels
    raise UserError(
        f"{where}: a batch must be (images, labels), two tensors, and is {type(batch).__name__}; "
        "where it is a table, give ((batch['image'], batch['label']) for batch in loader)."
    )


def check_iterable(batches: object, where: str) -> None:
    """Refuse what gives no batches, such as a number or a data set in place of its loader."""
    if not isinstance(batches, Iterable):
        raise UserError(
            f"{where}: batches (images, labels) are needed, such as a DataLoader gives, not "
            f"{type(batches).__name__}."
        )


def first_images(batches: Iterable[Any], where: str) -> tuple[Tensor, Iterator[Any]]:
    """Return the images of the first batch, and all batches, the first included.

    Raises:
        UserError: If there is none, or it is not a batch of images.
    """
    check_iterable(batches, where)
    iterator = iter(batches)
    batch = next(iterator, None)
    if batch is None:
        raise UserError(f"{where}: it gave no batch.")
    images, _ = read_pair(batch, where)
    check_images(images, None, where)
    if not len(images):
        raise UserError(f"{where}: its first batch has no image.")
    return images, itertools.chain([batch], iterator)


def differing_images(batches: Iterable[Any], where: str) -> tuple[Tensor, Iterator[Any]]:
    """Return two images that differ, and all batches, those included that were read for them.

    They are the first one and the first that differs from it. Where the first images are all alike,
    two of those.

    Raises:
        UserError: If there is none, or a batch is not one of images like the first.
    """
    images, iterator = first_images(batches, where)
    first, count, read = images[0], 0, list[Any]()
    other: Tensor | None = None
    for batch in iterator:
        read.append(batch)
        images, _ = read_pair(batch, where)
        check_images(images, tuple(first.shape), where)
        other = next((image for image in images if not torch.equal(image, first)), None)
        count += len(images)
        if other is not None or count >= MAX_ALIKE:
            break
    return torch.stack([first, first if other is None else other]), itertools.chain(read, iterator)


def check_images(images: Tensor, shape: tuple[int, ...] | None, where: str) -> None:
    """Refuse what is not a batch of images of this shape.

    Args:
        images: `[B, C, H, W]` is wanted.
        shape: `(C, H, W)` of the first batch, None for the first batch itself.
        where: For the message.
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        raise UserError(
            f"{where}: images are [B, C, H, W] of floating point, normalised as your networks want "
            f"them, not {_found(images)}."
        )
    if shape is not None and tuple(images.shape[1:]) != shape:
        raise UserError(
            f"{where}: images of {_size(images.shape[1:])}, but the first ones, to which probes "
            f"and heads were fitted, are of {_size(shape)}."
        )


def check_labels(labels: Tensor, batch_size: int, num_classes: int, where: str) -> None:
    """Refuse labels that are not one class of the network's for each image."""
    whole = isinstance(labels, Tensor) and not (labels.is_floating_point() or labels.is_complex())
    if not whole or labels.shape != (batch_size,):
        raise UserError(
            f"{where}: labels are one whole number for each of the {batch_size} images, not "
            f"{_found(labels)}."
        )
    # A GPU would have to be waited for, and code that is compiled cannot read a value.
    if labels.device.type == "cpu" and not torch.compiler.is_compiling() and batch_size:
        lowest, highest = (int(bound) for bound in labels.aminmax())
        if lowest < 0 or highest >= num_classes:
            wrong = lowest if lowest < 0 else highest
            raise UserError(
                f"{where}: label {wrong} is out of range: the networks have {num_classes} classes, "
                f"so 0 to {num_classes - 1} is allowed."
            )


def _found(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {list(value.shape)}"
    return type(value).__name__


def _size(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))
