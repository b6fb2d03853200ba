"""Checking a store against the present: the teacher is asked again about a sample of rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from krscale.config import ViewsConfig
from krscale.data import Dataset
from krscale.store.coding import deviations
from krscale.store.manifest import StoreCheckError
from krscale.store.reading import MappedStore
from krscale.store.rows import pixel_sums
from krscale.store.teacher_inference import AskedTeacher, OpenTeacher


@dataclass(frozen=True)
class Check:
    """A store that passed.

    Attributes:
        num_shards: Shards whose checksum was compared.
        num_rows: Rows whose pixels and content were computed again.
        max_difference: Largest difference found: of a probability, of a log-probability where
            logits are rounded, or of a feature's number; what rounding explains is allowed.
    """

    num_shards: int
    num_rows: int
    max_difference: float


def check_store(
    path: Path,
    open_teacher: OpenTeacher,
    dataset: Dataset,
    views: ViewsConfig,
    *,
    key: Mapping[str, str],
    device: torch.device,
    num_rows: int = 512,
) -> Check:
    """Compare every checksum, then ask again about rows spread over all views and samples.

    Args:
        path: Folder of the store.
        open_teacher: Loads teacher and probes.
        dataset: Whose training split is stored.
        views: The view policy.
        key: Fingerprints that the store must have been built from.
        device: Where the teacher runs.
        num_rows: Rows to compute again, at least one of every view.

    Raises:
        StoreCheckError: If a shard is broken, or a row's pixels or content differ; names it.
        UserError: If there is no store, or one of another key.
    """
    store = MappedStore.open(path, key)
    store.verify()
    asked = AskedTeacher(open_teacher, dataset, views, device)
    per_view = min(max(1, num_rows // store.num_views), store.num_samples)
    largest = 0.0
    for view in range(store.num_views):
        # Each view starts elsewhere, so that together they reach more samples.
        first = view * store.num_samples // (per_view * store.num_views)
        samples = first + torch.arange(per_view) * store.num_samples // per_view
        largest = max(largest, _check_rows(store, asked, view, samples))
    return Check(len(store.manifest.shards), per_view * store.num_views, largest)


def _check_rows(store: MappedStore, asked: AskedTeacher, view: int, samples: Tensor) -> float:
    """Return the largest difference that is allowed; raise for the first row that differs."""
    answers = list(asked.batches(view, samples))
    sums = torch.cat([pixel_sums(answer.pixels) for answer in answers]).cpu()
    moved = samples[sums != store.pixel_sums(view, samples)].tolist()
    if moved:
        raise StoreCheckError(
            f"{store.path}: the pixels of view {view} of sample {moved[0]} (and {len(moved) - 1} "
            f"more of {len(samples)}) are not those the teacher saw: images or view policy give "
            "other pixels than when the store was built. Delete the store to build it anew."
        )
    said = torch.cat([answer.said for answer in answers]).cpu()
    layout = store.manifest.plan.layout
    differences, allowed = deviations(store.gather(view, samples), said, layout)
    # Written so that NaN does not pass.
    fits = (differences <= allowed).flatten(1).all(dim=1)
    changed, largest = samples[~fits].tolist(), float(differences.max())
    if changed:
        raise StoreCheckError(
            f"{store.path}: of view {view} of sample {changed[0]} (and {len(changed) - 1} more of "
            f"{len(samples)}) the teacher now says something else: it differs by up to "
            f"{largest:.4f}. Teacher or probes have changed. Delete the store to build it anew."
        )
    return largest
