"""What a network gives at its taps for a whole split, and the linear probes that read it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from krscale.data import Dataset, SplitName
from krscale.errors import UserError
from krscale.knowledge.probes import Probes, fit_probe
from krscale.knowledge.taps import TapOutputs, TappedModel, pool
from krscale.models.preprocessing import preprocessing_of_network

PROBE_BATCH_SIZE = 512


@torch.no_grad()
def read_taps(
    tapped: TappedModel, dataset: Dataset, split: SplitName, device: torch.device
) -> TapOutputs:
    """Return pooled tap features `[N, F]` and logits `[N, K]` of a split, without augmentation."""
    images, prepared = dataset.split(split).images, preprocessing_of_network(tapped.model)
    logits: list[Tensor] = []
    features: list[list[Tensor]] = [[] for _ in tapped.paths]
    for first in range(0, len(images), PROBE_BATCH_SIZE):
        pixels = torch.tensor(images[first : first + PROBE_BATCH_SIZE], device=device)
        outputs = tapped(prepared.apply(pixels, dataset.mean, dataset.std))
        logits.append(outputs.logits.float())
        for kept, feature in zip(features, outputs.features, strict=True):
            kept.append(pool(feature).float())
    outputs = TapOutputs(torch.cat(logits), tuple(torch.cat(kept) for kept in features))
    _refuse_non_finite(outputs, tapped.paths, split)
    return outputs


def _refuse_non_finite(outputs: TapOutputs, paths: Sequence[str], split: SplitName) -> None:
    for what, values in (*zip(paths, outputs.features, strict=True), ("logits", outputs.logits)):
        if not bool(values.isfinite().all()):
            raise UserError(
                f"teacher: {what!r} is NaN or infinite for images of the {split} split; it cannot "
                "teach. Its weights are broken, or its images are not what it was trained on."
            )


def fit_probes(tapped: TappedModel, dataset: Dataset, device: torch.device) -> Probes:
    """Return probes fitted on the training split to every tap of a network in eval mode."""
    outputs = read_taps(tapped, dataset, "train", device)
    labels = torch.tensor(dataset.split("train").labels, device=device)
    num_classes = len(dataset.classes)
    probes = Probes([f.shape[1] for f in outputs.features], num_classes).to(device)
    probes.load([fit_probe(feature, labels, num_classes) for feature in outputs.features])
    return probes
