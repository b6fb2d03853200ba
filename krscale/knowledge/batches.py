"""Batches of images and labels from any data loader: reading and checks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from krscale.errors import UserError

MAX_ALIKE = 1000
"""Maximum number of images kept in memory until one is found that differs from the first."""


def read_pair(batch: Any, where: str) -> tuple[Tensor, Tensor]:
    """Return the images and labels of a loader's batch.

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
    """Refuse objects that give no batches, such as a number, or a data set without a loader."""
    if not isinstance(batches, Iterable):
        raise UserError(
            f"{where}: batches (images, labels) are needed, such as a DataLoader gives, not "
            f"{type(batches).__name__}."
        )


def first_images(batches: Iterable[Any], where: str) -> tuple[Tensor, Iterator[Any]]:
    """Return the images of the first batch that has any, and this batch with all that follow.

    Raises:
        UserError: If there is no image, or a batch is not one of images.
    """
    check_iterable(batches, where)
    iterator, missing = iter(batches), "batch"
    for batch in iterator:
        images, _ = read_pair(batch, where)
        check_images(images, None, where)
        if len(images):
            return images, itertools.chain([batch], iterator)
        missing = "image"
    raise UserError(f"{where}: it gave no {missing}.")


def differing_images(batches: Iterable[Any], where: str) -> tuple[Tensor, Iterator[Any]]:
    """Return two differing images and all batches, including those that were read to find them.

    The two images are the first one and the first that differs from it. If the first `MAX_ALIKE`
    images are all equal, the first one is returned twice.

    Raises:
        UserError: If there is no batch, or a batch does not have images like the first.
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
    """Refuse anything but a batch of images of this shape.

    Args:
        images: The value to check, which should be `[B, C, H, W]`.
        shape: `(C, H, W)` of the first batch, None for the first batch itself.
        where: Prefix of the error message.
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
    """Refuse labels that are not one class of the network for each image."""
    whole = isinstance(labels, Tensor) and not (labels.is_floating_point() or labels.is_complex())
    if not whole or labels.shape != (batch_size,):
        raise UserError(
            f"{where}: labels are one whole number for each of the {batch_size} images, not "
            f"{_found(labels)}."
        )
    # On a GPU the check would force a synchronisation, and compiled code cannot read a value.
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
