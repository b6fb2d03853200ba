"""(d) The loader on 50,000 images of 32x32x3 with pad-crop and flip, and its alternatives."""

from __future__ import annotations

import operator
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from krscale.config import ViewsConfig
from krscale.data import Dataset, Split
from krscale.data.arrow import write_split
from krscale.data.augmentation.views import gather_views, normalise
from krscale.data.loader import Loader
from parts.measuring import interleave

NUM_SAMPLES, IMAGE_SHAPE, BATCH_SIZE = 50_000, (3, 32, 32), 256
MEAN, STD = (0.5, 0.48, 0.44), (0.27, 0.26, 0.27)
PADDING = 4
VIEWS = ViewsConfig(num_views=4, shift=0, crop_padding=PADDING, flip=True)
NUM_WORKERS = 2


def write_images(path: Path, num_samples: int) -> None:
    """Write a training split of random pixels in krscale's format."""
    path.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (num_samples, *IMAGE_SHAPE), dtype=np.uint8)
    write_split(path / "train.arrow", Split(images, generator.integers(0, 100, num_samples)))


def images_at(path: Path, num_samples: int) -> Dataset:
    """Return the data set of images that `write_images` wrote."""
    return Dataset(
        path=path,
        fingerprint="random",
        source="random",
        classes=tuple(str(number) for number in range(100)),
        image_shape=IMAGE_SHAPE,
        mean=MEAN,
        std=STD,
        num_samples={"train": num_samples},
        sha256={},
    )


def measure_loader(storage: Path, num_rounds: int) -> dict[str, Any]:
    """Return samples per second of each way to make batches, and krscale's over the others'.

    In wall seconds, since the others use separate processes; an epoch of each, in turns.
    """
    write_images(storage / "images", NUM_SAMPLES)
    dataset = images_at(storage / "images", NUM_SAMPLES)
    images, labels = (tensor.clone() for tensor in dataset.split("train").tensors())
    loader = Loader(
        dataset, VIEWS, global_batch_size=BATCH_SIZE, seed=0, device=torch.device("cpu")
    )
    epochs = iter(range(10**6))
    single, batched = _PerSample(images, labels), _Batched(images, labels)

    work: dict[str, Callable[[], object]] = {
        "krscale": lambda: _exhaust(loader.epoch(next(epochs))),
        "dataloader_per_sample": lambda: _exhaust(_dataloader(single, NUM_WORKERS)),
        "dataloader_batched": lambda: _exhaust(_dataloader(batched, 0)),
        "dataloader_batched_workers": lambda: _exhaust(_dataloader(batched, NUM_WORKERS)),
        "bare_gather": lambda: _exhaust(_bare(images, labels, to_float=False)),
        "bare_gather_normalised": lambda: _exhaust(_bare(images, labels, to_float=True)),
    }
    seconds = interleave(work, num_rounds, time.perf_counter)
    rates = {name: NUM_SAMPLES / statistics.median(times) for name, times in seconds.items()}
    over = {
        f"over_{name}": round(rates["krscale"] / rate, 2)
        for name, rate in rates.items()
        if name != "krscale"
    }
    return {"samples_per_second": {name: round(rate) for name, rate in rates.items()}, **over}


def _exhaust(batches: Any) -> None:
    for _ in batches:
        pass


def _dataloader(dataset: _PerSample, num_workers: int) -> Any:
    # A batched data set returns one item that is a whole batch already.
    collate = operator.itemgetter(0) if isinstance(dataset, _Batched) else None
    return DataLoader(
        dataset, BATCH_SIZE, shuffle=True, num_workers=num_workers, collate_fn=collate
    )


def _bare(images: Tensor, labels: Tensor, *, to_float: bool) -> Any:
    for indices in torch.randperm(len(images)).split(BATCH_SIZE):
        batch = images.index_select(0, indices)
        yield normalise(batch, MEAN, STD) if to_float else batch, labels.index_select(0, indices)


class _PerSample(TorchDataset[tuple[Tensor, Tensor]]):
    """The usual way: one sample at a time, transformed in Python, collated into batches."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self.mean, self.std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = F.pad(self.images[index], [PADDING] * 4)
        row, column = torch.randint(0, 2 * PADDING + 1, (2,)).tolist()
        image = image[:, row : row + 32, column : column + 32]
        if torch.rand(()) < 0.5:
            image = image.flip(-1)
        return (image.float().div(255) - self.mean) / self.std, self.labels[index]


class _Batched(_PerSample):
    """The best a DataLoader can do: whole batches, with krscale's own batched views."""

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        chosen = torch.tensor(indices)
        pixels = gather_views(self.images, chosen, 0, VIEWS)
        return [(normalise(pixels, MEAN, STD), self.labels.index_select(0, chosen))]
