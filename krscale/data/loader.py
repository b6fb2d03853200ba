"""Batches of the training split: one permutation for all workers, no Python code per sample.

Images stay where they are cheapest to gather from: mapped pages on the CPU, which all trials of a
machine share, or the GPU's own memory when they fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from krscale.config import ViewsConfig
from krscale.data.ahead import OfTeacher, ReadAhead, one_ahead
from krscale.data.augmentation.mixing import mix, partners
from krscale.data.augmentation.views import apply_views, gather_views, view_of_epoch
from krscale.data.dataset import Dataset
from krscale.errors import UserError
from krscale.knowledge.features import FeatureKind
from krscale.methods.batch import UNLABELLED, Batch, Mixture
from krscale.models.preprocessing import DEFAULT, Preprocessing
from krscale.parallel import share_of

_TAPS = "taps"


class Stored(Protocol):
    """What the loader needs of a store of the teacher's outputs, which is in a layer above it."""

    @property
    def num_views(self) -> int:
        """Number of views of every sample."""

    @property
    def num_samples(self) -> int:
        """Number of samples of the training split."""


class Knowledge(Stored, Protocol):
    """What the loader needs of a `KnowledgeStore`."""

    def tap_logits(self, view: int, samples: Tensor, device: torch.device | None = None) -> Tensor:
        """Return `[B, D, K]` on `device` for samples `[B]` on the CPU."""


class Features(Stored, Protocol):
    """What the loader needs of a `FeatureStore`."""

    def features(
        self, view: int, samples: Tensor, device: torch.device | None = None
    ) -> tuple[Tensor, ...]:
        """Return the features `[B, ...]` on `device` for samples `[B]` on the CPU."""


class Loader:
    """Shuffled, augmented batches of the training split, with the teacher's outputs for them.

    The order of the samples depends on (seed, epoch) alone, and every worker takes an even,
    contiguous share of each global batch: together, the workers get exactly the batches of a single
    one. An epoch is divided evenly into steps: cutting full batches would leave a last batch of a
    few images, which distorts the statistics of batch norm and takes a whole step (docs/log.md).

    Attributes:
        num_steps: Number of global batches of an epoch; their sizes differ by at most one sample.

    Args:
        dataset: The data set whose training split is loaded.
        views: The view policy; epoch e trains on view `e mod num_views`.
        global_batch_size: Maximum number of samples of a step over all workers.
        seed: Seed of the sample order.
        device: Device that batches are put on.
        store: The teacher's knowledge; None leaves `Batch.tap_logits` None.
        features: Stores of the teacher's features by kind, for `Batch.teacher_features`.
        rank: This worker's number.
        world_size: Number of workers that share each batch.
        gpu_share_for_images: Share of a GPU's memory that images may take. If all images need more,
            batches are gathered from mapped pages on the host.
        preprocessing: Preprocessing of the network that is trained.

    Raises:
        UserError: If the store's numbers of views or samples differ from those to be loaded.
    """

    def __init__(
        self,
        dataset: Dataset,
        views: ViewsConfig,
        *,
        global_batch_size: int,
        seed: int,
        device: torch.device,
        store: Knowledge | None = None,
        features: Mapping[FeatureKind, Features] | None = None,
        rank: int = 0,
        world_size: int = 1,
        gpu_share_for_images: float = 0.1,
        preprocessing: Preprocessing = DEFAULT,
    ) -> None:
        self.views, self.seed = views, seed
        self.store, self.rank, self.world_size = store, rank, world_size
        self.device = _with_index(device)
        self.mean, self.std = dataset.mean, dataset.std
        self.preprocessing = preprocessing
        self.split = dataset.split("train", lazily=True)
        images, labels = self.split.tensors()
        self.num_samples = len(labels)
        self.num_steps = -(-self.num_samples // global_batch_size)
        fits = _fits(images, self.device, gpu_share_for_images)
        if fits and self.device.type != "cpu":
            self.split.check()  # all images are read now
        self.images = images.to(self.device) if fits else images
        self.labels = labels.to(self.device)
        self.features = dict(features or {})
        for stored in (store, *self.features.values()):
            _check_store(stored, views, self.num_samples)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield this worker's share of every batch; a share may be empty.

        Args:
            epoch: Number of the epoch, from 0.
        """
        order = permutation(self.num_samples, self.seed, epoch)
        view = view_of_epoch(epoch, self.views)
        make = partial(self._batch, order, view, self._of_teacher(order, view))
        if self.device.type == "cuda":
            use_gpu = partial(torch.cuda.set_device, self.device)  # set per thread
            with ThreadPoolExecutor(1, initializer=use_gpu) as pool:
                yield from one_ahead(make, self.num_steps, pool)
        else:
            # The student keeps all of the trial's cores busy; a further thread would only slow it
            # down.
            yield from map(make, range(self.num_steps))

    def _samples(self, order: Tensor, step: int) -> tuple[Tensor, int]:
        """Return this worker's samples of a step, and the number of samples of all workers."""
        first, last = share_of(self.num_samples, step, self.num_steps)
        start, stop = share_of(last - first, self.rank, self.world_size)
        return order[first + start : first + stop], last - first

    def _of_teacher(self, order: Tensor, view: int) -> Callable[[int], OfTeacher]:
        """Return a function that returns the teacher's outputs for a step's samples."""
        read = partial(self._read, view)
        if self.device.type == "cuda":  # the loader's thread reads while training runs
            return lambda step: read(self._samples(order, step)[0])
        return ReadAhead(read, lambda step: self._samples(order, step)[0], self.num_steps)

    def _read(self, view: int, samples: Tensor) -> OfTeacher:
        found: dict[str, tuple[Tensor, ...]] = {
            kind: stored.features(view, samples, self.device)
            for kind, stored in self.features.items()
        }
        if self.store is not None:
            found[_TAPS] = (self.store.tap_logits(view, samples, self.device),)
        return found

    def _batch(
        self, order: Tensor, view: int, of_teacher: Callable[[int], OfTeacher], step: int
    ) -> Batch:
        on_host, global_size = self._samples(order, step)
        samples = _copy(on_host, self.device)
        pixels = self._views(view, on_host, samples)
        labels = self.labels.index_select(0, samples)
        mixture = None
        if self.views.mixes:
            other_on_host = partners(on_host, view, self.views, self.num_samples)
            others = _copy(other_on_host, self.device)
            other_pixels = self._views(view, other_on_host, others)
            pixels, weights = mix(pixels, other_pixels, samples, view, self.views)
            labels, of_others = _labels_of_both(labels, self.labels.index_select(0, others))
            mixture = Mixture(of_others, weights)
        taught = of_teacher(step)
        return Batch(
            images=self.preprocessing.apply(pixels, self.mean, self.std),
            labels=labels,
            samples=samples,
            tap_logits=None if self.store is None else taught[_TAPS][0],
            global_size=global_size,
            teacher_features={kind: taught[kind] for kind in self.features},
            mixture=mixture,
        )

    def _views(self, view: int, on_host: Tensor, samples: Tensor) -> Tensor:
        """Return one view of each sample, given on the host and on the device."""
        self.split.check(on_host.numpy())
        if self.images.device == self.device:
            return gather_views(self.images, samples, view, self.views)
        gathered = _copy(self.images.index_select(0, on_host), self.device)
        return apply_views(gathered, samples, view, self.views)


def _labels_of_both(own: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return the labels of mixed images; UNLABELLED if one of the two parts has no label."""
    missing = (own == UNLABELLED) | (other == UNLABELLED)
    return own.masked_fill(missing, UNLABELLED), other.masked_fill(missing, UNLABELLED)


def permutation(num_samples: int, seed: int, epoch: int) -> Tensor:
    """Return the order of the samples in an epoch, `[N]` int64 on the CPU.

    It depends on nothing else, and leaves torch's random state unchanged.

    Example:
        >>> order = permutation(100, seed=0, epoch=1)
        >>> torch.equal(order, permutation(100, 0, 1)), torch.equal(order, permutation(100, 1, 0))
        (True, False)
    """
    # Hash seed and epoch, so that neighbouring seeds do not share the orders of neighbouring
    # epochs.
    mixed = np.random.SeedSequence([seed % 2**64, epoch]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(mixed[0]))
    return torch.randperm(num_samples, generator=generator)


def _check_store(store: Stored | None, views: ViewsConfig, num_samples: int) -> None:
    if store is None:
        return
    if store.num_samples != num_samples:
        raise UserError(
            f"the store holds {store.num_samples} samples, the training split {num_samples}: "
            "it was built from other data."
        )
    if store.num_views != views.num_views:
        raise UserError(
            f"the store holds {store.num_views} views of every sample, views.num_views asks for "
            f"{views.num_views}: it was built from another view policy."
        )


def _with_index(device: torch.device) -> torch.device:
    """Return the device with its index if it is plain `cuda`, so that devices can be compared."""
    if device == torch.device("cuda"):
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _fits(images: Tensor, device: torch.device, share: float) -> bool:
    if device.type != "cuda":
        return True
    _, total = torch.cuda.mem_get_info(device)
    return images.nbytes <= share * total


def _copy(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to the device; for a GPU, from page-locked memory, so that the host need not wait."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
