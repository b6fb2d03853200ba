"""Batches of the training split: one permutation for all workers, no work per sample in Python.

Images stay where they are cheapest to gather from: mapped pages on the CPU, which all trials of a
machine share, or the GPU's own memory when they fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from krscale.config import ViewsConfig
from krscale.data.dataset import Dataset
from krscale.data.views import apply_views, gather_views, normalise, view_of_epoch
from krscale.errors import UserError
from krscale.methods.base import Batch
from krscale.parallel import share_of

# Several trials may share a GPU, and each holds its own images there.
_SHARE_OF_GPU = 0.1


class Knowledge(Protocol):
    """What the loader needs of a `KnowledgeStore`, which stands a floor above it."""

    num_views: int
    num_samples: int

    def gather(self, view: int, samples: Tensor) -> ...:
        """Copy rows of the samples, on the CPU."""


class Knowledge(Protocol):
    """What the teacher says of the training split: a `KnowledgeStore`, or a teacher asked anew."""

    def tap_logits(self, view: int, samples: Tensor) -> Tensor:
        """Return `[B, D, K]` fp32 for one view of the samples `[B]`, on their device."""
        ...


class Loader:
    """Shuffled, augmented batches of the training split, with what the teacher says of them.

    The order of the samples depends on (seed, epoch) alone, and every worker takes an even,
    contiguous share of each global batch: together they see exactly what one would.

    Args:
        dataset: Its training split is loaded.
        views: The view policy; epoch e trains on view `e mod num_views`.
        global_batch_size: Samples of a step over all workers; the last batch may be smaller.
        seed: Seed of the sample order.
        device: Where batches go.
        store: The teacher's knowledge; None leaves `Batch.tap_logits` None.
        rank: This worker's number.
        world_size: How many workers share each batch.

    Raises:
        UserError: If the store holds other views or samples than would be loaded.
    """
