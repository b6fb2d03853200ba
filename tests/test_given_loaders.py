"""Which pairs of loaders are accepted for training and validation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from kr_losses import Pairs
from kr_losses import make_pairs as pairs
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    random_split,
)

from krscale.errors import UserError
from krscale.given_loaders import check_loaders


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Images one after another."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in pairs(0):
            yield from zip(images, labels, strict=True)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (3, "distill: data: two loaders are needed"),
        (pairs(0), "two loaders are needed"),
        ((pairs(0), iter(pairs(1))), r"data\[1\]: list_iterator has no length"),
        ((pairs(0), []), r"data\[1\]: it has no batch"),
        ((3, pairs(1)), r"data\[0\]: int has no length"),
        (
            (DataLoader(Stream(), batch_size=40), pairs(1)),
            r"data\[0\]: DataLoader has no length, as its data set \(Stream\) has none",
        ),
    ],
)
def test_what_cannot_be_read_in_every_epoch_is_refused(data: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_loaders(data)


IMAGES = TensorDataset(*(torch.cat(parts) for parts in zip(*pairs(0), strict=True)))
FIRST, LAST = Subset(IMAGES, range(90)), Subset(IMAGES, range(90, 120))
LAST_BY_TENSOR = Subset(IMAGES, torch.arange(60, 120))


def loader(images: Any, **options: Any) -> DataLoader[Any]:
    return DataLoader(images, batch_size=40, **options)


def of_rows(rows: Any) -> DataLoader[Any]:
    return loader(IMAGES, sampler=SubsetRandomSampler(rows))


def cut(images: TensorDataset) -> Pairs:
    return list(zip(*(tensor.split(40) for tensor in images.tensors), strict=True))


class Own:
    """A user's own loader, whose data set is unknown."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Any]:
        return iter(pairs(0))


class Named:
    """A data set whose keys are texts."""

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, name: str) -> Any:
        return IMAGES[int(name.removeprefix("image "))]


class OwnOrder(Sampler[int]):
    """A user's own sampler whose `indices` are not numbers of rows."""

    def __init__(self, indices: Any) -> None:
        self.indices = indices

    def __iter__(self) -> Iterator[int]:
        return iter(range(120))

    def __len__(self) -> int:
        return 120


def of_names(rows: range, images: Any) -> DataLoader[Any]:
    names: Any = [f"image {row}" for row in rows]
    return loader(Subset(images, names))


BATCHES, OWN, NAMED = pairs(0), Own(), Named()
EMPTY = tuple(tensor[:0] for tensor in BATCHES[0])
SHARED = {
    "the same list": (BATCHES, BATCHES),
    "a part of the list": (BATCHES, BATCHES[:1]),
    "other pairs of the same tensors": (BATCHES, [[images, labels] for images, labels in BATCHES]),
    "cut anew from one tensor": (cut(IMAGES), cut(IMAGES)),
    "two loaders of one set": (loader(IMAGES, shuffle=True), loader(IMAGES)),
    "a part of the set": (loader(IMAGES), loader(LAST)),
    "parts that overlap": (loader(FIRST), loader(Subset(IMAGES, range(80, 120)))),
    "parts of parts": (loader(Subset(FIRST, range(50))), loader(Subset(IMAGES, range(49, 60)))),
    "parts by tensors": (loader(Subset(IMAGES, torch.arange(61))), loader(LAST_BY_TENSOR)),
    "samplers": (of_rows(range(61)), of_rows(range(60, 120))),
    "samplers of tensors": (of_rows(torch.arange(61)), of_rows(torch.arange(60, 120))),
    "names": (of_names(range(61), NAMED), of_names(range(60, 120), NAMED)),
    "one of one's own": (OWN, OWN),
    "batches of a set": (DataLoader(BATCHES, batch_size=None),) * 2,
}  # fmt: skip
APART = {
    "lists": (BATCHES[:2], BATCHES[2:]),
    "lists with a batch of no image": ([*BATCHES[:2], EMPTY], [*BATCHES[2:], EMPTY]),
    "random_split": tuple(map(loader, random_split(IMAGES, [90, 30]))),
    "samplers": (of_rows(range(60)), of_rows(range(60, 120))),
    "samplers of batches": [
        DataLoader(IMAGES, batch_sampler=BatchSampler(SubsetRandomSampler(rows), 30, False))
        for rows in (range(60), range(60, 120))
    ],
    "names": (of_names(range(60), NAMED), of_names(range(60, 120), NAMED)),
    "samplers of one's own": (
        loader(IMAGES, sampler=OwnOrder(None)),
        loader(TensorDataset(*IMAGES.tensors), sampler=OwnOrder({"cat": [1, 2]})),
    ),
    "others of one's own": (OWN, Own()),
}  # fmt: skip


@pytest.mark.parametrize("kind", SHARED)
def test_images_that_are_trained_on_do_not_validate(kind: str) -> None:
    with pytest.raises(UserError, match="of validation are trained on"):
        check_loaders(SHARED[kind])


@pytest.mark.parametrize("kind", APART)
def test_parts_of_one_set_validate(kind: str) -> None:
    train, val = check_loaders(APART[kind])
    assert (train, val) == tuple(APART[kind])
