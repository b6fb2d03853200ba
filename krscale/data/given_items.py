"""Read one split from an object: a data set, a loader, batches or two arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

from krscale.data.reading.arrays import as_text
from krscale.data.reading.pixels import Array, Normalisation, Pixels, sizes, to_pixels
from krscale.data.splits.duplicates import digests
from krscale.errors import UserError

_IMAGES, _LABELS = ("image", "images", "img", "pixel_values"), ("label", "labels")
_NUM_READ_TWICE = 32
"""Images that are read twice: with only four, a random flip would go unnoticed once in 16 times."""
_BATCH_AXES = 4


@dataclass(frozen=True)
class Items:
    """Images and labels of one split.

    Attributes:
        images: `[N, ...]` uint8.
        labels: `[N]`, whole numbers or text.
        classes: Names of the classes; empty if the data set does not provide them.
        is_float: As in `Pixels`.
        channels_first: As in `Pixels`.
    """

    images: Array
    labels: Array
    classes: tuple[str, ...]
    is_float: bool
    channels_first: bool


def read_items(part: Any, where: str, normalisation: Normalisation | None) -> Items:
    """Read a split once.

    Args:
        part: A data set of `(image, label)`, a loader of batches, any iterable of either, or
            `(images, labels)`, two arrays. Samples and batches may be dictionaries.
        where: Description of the split, for messages.
        normalisation: Normalisation that was applied to the images.

    Raises:
        UserError: If it is none of these, or differs from one reading to the next.
    """
    _refuse_random(part, where, normalisation)
    pixels: list[Pixels] = []
    labels: list[Any] = []
    for entry in _entries(part, where):
        image, label = _pair(entry, where)
        if _is_batch(label) and not len(label) and np.shape(_scalar(image))[:1] == (0,):
            continue
        found = to_pixels(image, where, normalisation)
        is_batch = _is_batch(label) and not _is_one_image(found.values, label)
        if is_batch and len(found.values) != len(label):
            raise UserError(f"{where}: {len(found.values)} images, but {len(label)} labels.")
        pixels.append(found if is_batch else _one(found))
        labels += _listed(label) if is_batch else [_scalar(label)]
    if not labels:
        raise UserError(f"{where}: there are no images.")
    shapes = [found.values.shape[1:] for found in pixels]
    if len(set(shapes)) > 1:
        raise UserError(f"{where}: images of {sizes(shapes)}; all must have one size.")
    images, known = np.concatenate([found.values for found in pixels]), _label_array(labels, where)
    if isinstance(part, DataLoader) and _in_order(part) is part:  # its order may vary
        order = np.lexsort((known, digests(images)))
        images, known = images[order], known[order]
    if len({found.is_float for found in pixels}) > 1:
        raise UserError(f"{where}: some images are floats, others whole numbers.")
    first = all(found.channels_first for found in pixels)
    classes = _classes(part) if known.dtype.kind in "iu" else ()
    return Items(images, known, classes, pixels[0].is_float, first)


def _entries(part: Any, where: str) -> Iterator[Any]:
    """Yield samples or batches."""
    if isinstance(part, tuple | list) and len(part) == 2 and hasattr(part[0], "ndim"):
        yield part
    elif isinstance(part, DataLoader):
        yield from _in_order(part)
    elif _is_indexed(part):
        # Data sets need not be iterable, and those that appear to be may never end.
        yield from (part[number] for number in range(len(part)))
    elif isinstance(part, Iterable) and not isinstance(part, str | bytes | Mapping):
        yield from part
    else:
        raise UserError(
            f"{where}: {type(part).__name__} holds no images; expected a data set or a loader of "
            "(image, label), batches of them, or (images, labels), two arrays."
        )


def _is_indexed(part: Any) -> bool:
    """Whether it is a data set whose entries are read by number."""
    other = isinstance(part, str | bytes | Mapping | IterableDataset) or hasattr(part, "dtype")
    return hasattr(part, "__getitem__") and isinstance(part, Sized) and not other


def _in_order(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Return a loader that reads a data set in order; the given one if its sampler is unusual."""
    usual = type(loader.sampler) is SequentialSampler or (
        type(loader.sampler) is RandomSampler
        and not loader.sampler.replacement
        and loader.sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    )
    if not usual or loader.batch_size is None:
        return loader
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
    )


def _pair(entry: Any, where: str) -> tuple[Any, Any]:
    if isinstance(entry, Mapping):
        image, label = (
            next((entry[key] for key in keys if key in entry), None) for keys in (_IMAGES, _LABELS)
        )
        if image is not None and label is not None:
            return image, label
    elif isinstance(entry, tuple | list) and len(entry) >= 2:
        return entry[0], entry[1]
    raise UserError(
        f"{where}: each entry must be (image, label) or (images, labels), and is "
        f"{type(entry).__name__}."
    )


def _is_batch(label: Any) -> bool:
    return not isinstance(label, str | bytes) and np.ndim(_scalar(label)) > 0


def _is_one_image(values: Array, label: Any) -> bool:
    """Whether a label in a list of length 1, as MedMNIST data sets return it, is of one image."""
    return len(label) == 1 and values.ndim < _BATCH_AXES and len(values) != 1


def _scalar(label: Any) -> Any:
    return label.detach().cpu().numpy() if isinstance(label, torch.Tensor) else label


def _listed(label: Any) -> list[Any]:
    return list(np.asarray(_scalar(label)))


def _one(pixels: Pixels) -> Pixels:
    return Pixels(pixels.values[None], pixels.is_float, pixels.channels_first)


def _label_array(labels: list[Any], where: str) -> Array:
    """Return labels as whole numbers or text; refuse anything else."""
    try:
        found = np.asarray(labels)
    except ValueError:
        found = np.empty(0, object)
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim != 1 or found.dtype.kind not in "iuUb":
        raise UserError(
            f"{where}: labels of type {found.dtype} and shape {list(found.shape)}; expected one "
            "whole number or one name for each image."
        )
    return found.astype(np.int64) if found.dtype.kind == "b" else found


def _classes(part: Any) -> tuple[str, ...]:
    """Return the class names of a data set, also if it is inside loaders or subsets."""
    while part is not None:
        names = getattr(part, "classes", None)
        if isinstance(names, tuple | list) and names:
            return tuple(map(as_text, names))
        part = getattr(part, "dataset", None)
    return ()


def _refuse_random(part: Any, where: str, normalisation: Normalisation | None) -> None:
    """Refuse a data set whose images differ from one reading to the next."""
    data = part.dataset if isinstance(part, DataLoader) else part
    if isinstance(data, tuple | list) or not _is_indexed(data):
        return
    for number in range(min(_NUM_READ_TWICE, len(data))):  # type: ignore[arg-type]
        first, second = (
            to_pixels(_pair(data[number], where)[0], where, normalisation).values for _ in range(2)
        )
        if not np.array_equal(first, second):
            raise UserError(
                f"{where}: image {number} differs from one reading to the next, as with random "
                "augmentation. Give the images without it: views.shift, views.flip, ... vary them "
                "in every epoch."
            )
