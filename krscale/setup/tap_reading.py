"""Read a network's taps for a whole split, and fit linear probes to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from krscale.data import Dataset, SplitName
from krscale.data.splits.stratify import Rows, of_every_class
from krscale.errors import UserError
from krscale.knowledge.probes import Probes, fit_probe, read_tap
from krscale.knowledge.taps import TapOutputs, TappedModel
from krscale.models.preprocessing import preprocessing_of_network

PROBE_BATCH_SIZE = 512
MAX_NUMBERS = 2**23
"""Maximum count of numbers held at once to fit probes on a grid: 8,192 images of 1,024 numbers,
minutes on a CPU. If a tap has more, probes are fitted to fewer images, of every
class its share."""


@torch.no_grad()
def read_taps(
    tapped: TappedModel,
    dataset: Dataset,
    split: SplitName,
    device: torch.device,
    *,
    grid: int = 1,
    rows: Rows | None = None,
) -> TapOutputs:
    """Return what probes read for a split: `[N, F]` for every tap, and logits `[N, K]`.

    Args:
        tapped: The network in eval mode.
        dataset: The data set, whose images are read without augmentation.
        split: Name of the split.
        device: Device of the network.
        grid: Grid on which the taps are read.
        rows: Images to read, in ascending order; None reads all.
    """
    logits: list[Tensor] = []
    features: list[list[Tensor]] = [[] for _ in tapped.paths]
    for outputs in _outputs(tapped, dataset, split, device, rows):
        logits.append(outputs.logits.float())
        for kept, feature in zip(features, outputs.features, strict=True):
            kept.append(read_tap(feature, grid))
    outputs = TapOutputs(torch.cat(logits), tuple(torch.cat(kept) for kept in features))
    _refuse_non_finite(outputs, tapped.paths, split)
    return outputs


@torch.no_grad()
def read_logits(
    tapped: TappedModel, probes: Probes, dataset: Dataset, split: SplitName, device: torch.device
) -> Tensor:
    """Return the logits of every tap for a split, `[N, D, K]` fp32, batch by batch.

    The result is that of `probes(read_taps(...))`, but the features need not fit into memory.
    """
    logits = []
    for outputs in _outputs(tapped, dataset, split, device, None):
        logits.append(probes(outputs))
        read = [read_tap(feature, probes.grid) for feature in outputs.features]
        _refuse_non_finite(TapOutputs(outputs.logits, tuple(read)), tapped.paths, split)
    return torch.cat(logits)


def fit_probes(
    tapped: TappedModel, dataset: Dataset, device: torch.device, grid: int = 1
) -> Probes:
    """Return probes fitted on the training split to every tap of a network in eval mode.

    On a grid, taps are read and fitted a few at a time, so that at most `MAX_NUMBERS` are held.

    Args:
        tapped: The network.
        dataset: Its data.
        device: Device of the network.
        grid: Grid on which the taps are read; 1 reads their means over all positions.
    """
    labels, num_classes = dataset.split("train").labels, len(dataset.classes)
    sizes = _sizes(tapped, dataset, device, grid)
    num_rows = len(labels) if grid == 1 else min(len(labels), MAX_NUMBERS // max(sizes, default=1))
    rows = of_every_class(labels, num_rows)
    chosen = torch.tensor(labels[rows], device=device)
    found = []
    for paths in _groups(tapped.paths, sizes, num_rows if grid > 1 else 0):
        outputs = read_taps(
            TappedModel(tapped.model, paths), dataset, "train", device, grid=grid, rows=rows
        )
        found += [fit_probe(feature, chosen, num_classes) for feature in outputs.features]
    probes = Probes(sizes, num_classes, grid).to(device)
    probes.load(found)
    return probes


@torch.no_grad()
def _outputs(
    tapped: TappedModel,
    dataset: Dataset,
    split: SplitName,
    device: torch.device,
    rows: Rows | None,
) -> Iterator[TapOutputs]:
    """Yield a network's outputs for images of a split, without augmentation."""
    images, prepared = dataset.split(split).images, preprocessing_of_network(tapped.model)
    number = len(images) if rows is None else len(rows)
    for first in range(0, number, PROBE_BATCH_SIZE):
        part = slice(first, first + PROBE_BATCH_SIZE)
        pixels = torch.tensor(images[part] if rows is None else images[rows[part]], device=device)
        yield tapped(prepared.apply(pixels, dataset.mean, dataset.std))


def _sizes(tapped: TappedModel, dataset: Dataset, device: torch.device, grid: int) -> list[int]:
    """Return how many numbers are read from every tap."""
    one = read_taps(tapped, dataset, "train", device, grid=grid, rows=np.arange(1))
    return [feature.shape[1] for feature in one.features]


def _groups(paths: Sequence[str], sizes: Sequence[int], num_rows: int) -> list[tuple[str, ...]]:
    """Divide the taps into groups that are read at once, with at most `MAX_NUMBERS` numbers."""
    groups: list[tuple[str, ...]] = []
    held = 0
    for path, size in zip(paths, sizes, strict=True):
        held += size * num_rows
        if groups and held <= MAX_NUMBERS:
            groups[-1] = (*groups[-1], path)
        else:
            groups.append((path,))
            held = size * num_rows
    return groups


def _refuse_non_finite(outputs: TapOutputs, paths: Sequence[str], split: str) -> None:
    for what, values in (*zip(paths, outputs.features, strict=True), ("logits", outputs.logits)):
        if not bool(values.isfinite().all()):
            raise UserError(
                f"teacher: {what!r} is NaN or infinite for images of the {split} split; it cannot "
                "teach. Its weights are broken, or its images are not what it was trained on."
            )
