"""Check loaders that were given to `krscale.distill`, and read them with the teacher's outputs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, Subset

from krscale.errors import UserError
from krscale.knowledge.batches import check_images, check_labels, first_images, read_pair
from krscale.knowledge.features import FeatureKind
from krscale.kr import KRLoss
from krscale.methods import Batch
from krscale.models.preprocessing import DEFAULT

_LOG = logging.getLogger(__name__)


def check_loaders(data: Any) -> tuple[Iterable[Any], Iterable[Any]]:
    """Return the loaders for training and validation after checking them.

    Raises:
        UserError: If they are not two, if one has no length, no batch or can be read only once, or
            if both contain the same images.
    """
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise UserError("distill: data: two loaders are needed: (train_loader, val_loader).")
    for number, loader in enumerate(data):
        length = _length(loader)
        if length is None and isinstance(loader, DataLoader):
            raise UserError(
                f"distill: data[{number}]: {type(loader).__name__} has no length, as its data set "
                f"({type(loader.dataset).__name__}) has none; give that a __len__."
            )
        if length is None or iter(loader) is loader:
            raise UserError(
                f"distill: data[{number}]: {type(loader).__name__} has no length, or can be read "
                "once only; give a DataLoader, or a list of batches."
            )
        if length == 0:
            raise UserError(f"distill: data[{number}]: it has no batch.")
    (trained, rows), (judged, others) = map(_rows, data)
    shared = len(set(rows) & set(others)) if trained is judged else 0
    if shared:
        raise UserError(
            f"distill: data: {shared:,} of {len(others):,} images or batches of validation are "
            "trained on, so that its accuracy would say nothing of new ones; split them."
        )
    return data[0], data[1]


def _length(loader: Any) -> int | None:
    """Return the number of batches of a loader; None if it has no length."""
    try:
        return len(loader)
    except TypeError:  # every DataLoader has `__len__`, even if its data set has none
        return None


def _rows(loader: Any) -> tuple[object, Sequence[int]]:
    """Return the data that a loader reads, and the rows that it reads, as far as they are known.

    For a list of batches, the rows are the memory addresses of each batch's images. A part of the
    list, or another list of batches cut from the same tensor, has addresses in common with it.
    """
    if isinstance(loader, (tuple, list)):
        images = (read_pair(batch, "distill: data")[0] for batch in loader)
        return None, [batch.data_ptr() for batch in images if batch.numel()]  # empty ones have 0
    source, sampler = getattr(loader, "dataset", loader), getattr(loader, "sampler", None)
    batches = getattr(loader, "batch_sampler", None)
    if not hasattr(source, "__len__") or getattr(batches, "sampler", sampler) is not sampler:
        return loader, ()
    rows: Sequence[int] = range(len(source))
    if not isinstance(sampler, (SequentialSampler, RandomSampler, type(None))):
        found = getattr(sampler, "indices", ())
        rows = [_number(row) for row in found] if isinstance(found, Iterable) else ()
    while isinstance(source, Subset):
        rows, source = [_number(source.indices[row]) for row in rows], source.dataset
    return source, rows


def _number(row: Any) -> Any:
    """Return a row that is a tensor as a number; others, such as names of images, as they are."""
    return row.item() if isinstance(row, Tensor) and row.numel() == 1 else row


class TaughtBatches:
    """The batches of a loader with the teacher's outputs, in the form that a training reads."""

    def __init__(self, loader: Iterable[Any], loss: KRLoss, device: torch.device) -> None:
        self.loader, self.loss, self.device = loader, loss, device
        self.images, _ = first_images(loader, "data[0]")
        self.preprocessing = DEFAULT  # the loader already preprocesses the images
        self.batch_size = len(self.images)
        self.num_steps = len(loader)  # type: ignore[arg-type]  # `check_loaders` has asked for it
        self.num_samples = self.batch_size * self.num_steps
        self._told_of_length = False

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield every batch on the device, except those without any image."""
        count, num_batches = 0, 0
        for batch in self.loader:
            images, labels = checked_pair(batch, self.loss, "data[0]")
            num_batches += 1
            if not len(labels):  # a loader may leave out images that it cannot read
                continue
            images, labels = images.to(self.device), labels.long().to(self.device)
            samples = torch.arange(count, count + len(labels))
            count += len(labels)
            tap_logits, where = self.loss.knowledge(images)
            features: dict[FeatureKind, tuple[Tensor, ...]] = {"where": where}
            yield Batch(images, labels, samples, tap_logits, len(labels), features)
        if not count:
            raise UserError(ran_dry("data[0]"))
        self._check_length(num_batches)

    def _check_length(self, num_batches: int) -> None:
        """Warn once if the number of batches is not the loader's length.

        Each worker process of a DataLoader may end with a partial batch.
        """
        spare = max(0, (getattr(self.loader, "num_workers", 0) or 0) - 1)
        if abs(num_batches - self.num_steps) > spare and not self._told_of_length:
            self._told_of_length = True
            _LOG.warning(
                "distill: data[0]: it gave %d batches, and its length is %d: the learning rate "
                "falls as if the latter were an epoch's. Let its __len__ be what it gives.",
                num_batches,
                self.num_steps,
            )


def checked_pair(batch: Any, loss: KRLoss, where: str) -> tuple[Tensor, Tensor]:
    """Return images `[B, C, H, W]` and labels `[B]` of a batch.

    Raises:
        UserError: If they do not have the shape or the classes that the loss was made for.
    """
    images, labels = read_pair(batch, where)
    check_images(images, loss.image_shape, where)
    check_labels(labels, len(images), loss.context.num_classes, where)
    return images, labels


def ran_dry(where: str) -> str:
    """Return the error message for a loader that was empty when it was read again."""
    return (
        f"distill: {where}: it gave no batch when it was read again, as once every epoch; every "
        "iter() of it must begin anew, as a DataLoader's does."
    )
