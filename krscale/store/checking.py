"""Checking a store: the teacher computes a sample of its rows again, and they are compared."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from krscale.store.coding import deviations
from krscale.store.manifest import StoreCheckError
from krscale.store.reading import MappedStore
from krscale.store.rows import pixel_sums
from krscale.store.spec import StoreSpec
from krscale.store.teacher_inference import TeacherInference

_OF_BF16 = 4.0
"""Factor of the allowed difference where the arithmetic has the 8 bits of bf16, and not the 11 of
TF32 (an estimate: 8 % in place of 2 %)."""


@dataclass(frozen=True)
class Check:
    """The result for a store that passed.

    Attributes:
        num_shards: Shards whose checksum was compared.
        num_rows: Rows whose pixels and content were computed again.
        max_difference: Largest difference found: of a probability, of a log-probability where
            logits are rounded, or of a number of a feature; rounding errors are allowed.
    """

    num_shards: int
    num_rows: int
    max_difference: float


def check_store(spec: StoreSpec, num_rows: int = 512) -> Check:
    """Compare every checksum, then compute rows spread over all views and samples again.

    Args:
        spec: What the store is made of.
        num_rows: Rows to compute again, at least one of every view.

    Raises:
        StoreCheckError: If a shard is broken, or a row's pixels or content differ; names it.
        UserError: If there is no store, or one of another key.
    """
    store = MappedStore.open(spec.path, spec.key)
    store.verify()
    teacher = TeacherInference(spec, store.manifest.plan.precision)
    per_view = min(max(1, num_rows // store.num_views), store.num_samples)
    largest = 0.0
    for view in range(store.num_views):
        # Each view starts at another sample, so that together they cover more samples.
        first = view * store.num_samples // (per_view * store.num_views)
        samples = first + torch.arange(per_view) * store.num_samples // per_view
        largest = max(largest, _check_rows(store, teacher, view, samples))
    return Check(len(store.manifest.shards), per_view * store.num_views, largest)


def _check_rows(store: MappedStore, teacher: TeacherInference, view: int, samples: Tensor) -> float:
    """Return the largest difference; raise if one is not allowed, naming the first such row."""
    batches = list(teacher.batches(view, samples))
    sums = torch.cat([pixel_sums(batch.pixels) for batch in batches]).cpu()
    sums &= 2**store.manifest.plan.layout.pixel_bits - 1  # as many bits as are kept
    moved = samples[sums != store.pixel_sums(view, samples)].tolist()
    if moved:
        raise StoreCheckError(
            f"{store.path}: the pixels of view {view} of sample {moved[0]} (and {len(moved) - 1} "
            f"more of {len(samples)}) are not those the teacher saw: images or view policy give "
            "other pixels than when the store was built. Delete the store to build it anew."
        )
    outputs = torch.cat([batch.outputs for batch in batches]).cpu()
    layout = store.manifest.plan.layout
    differences, allowed = deviations(store.gather(view, samples), outputs, layout)
    if teacher.precision == "bf16":
        allowed = _OF_BF16 * allowed
    # In this form the comparison refuses NaN, too.
    fits = (differences <= allowed).flatten(1).all(dim=1)
    changed, largest = samples[~fits].tolist(), float(differences.max())
    if changed:
        raise StoreCheckError(
            f"{store.path}: of view {view} of sample {changed[0]} (and {len(changed) - 1} more of "
            f"{len(samples)}) the teacher's outputs are others now: they differ by up to "
            f"{largest:.4f}. Teacher or probes have changed. Delete the store to build it anew."
        )
    return largest
