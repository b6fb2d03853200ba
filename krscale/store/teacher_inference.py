"""Asking the teacher what it says of views: the only place where it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from krscale.config import ViewsConfig
from krscale.data import Dataset
from krscale.data.views import apply_views, normalise
from krscale.knowledge.taps import TappedModel

BATCH_SIZE = 256
# Moved to the device at once: with a copy before every batch, a GPU would wait for the host.
_MOVED_BATCHES = 8

OpenTeacher = Callable[[], tuple[TappedModel, nn.Module]]
"""Loads the tapped teacher and what reads it on the device: its probes (`TapOutputs -> [B, D, K]`),
or a reader of features (`TapOutputs -> [B, F]`)."""


@dataclass(frozen=True)
class Answer:
    """What the teacher says of a batch of views.

    Attributes:
        pixels: `[B, C, H, W]` uint8, the views.
        said: `[B, D, K]` tap logits or `[B, F]` features, fp32.
    """

    pixels: Tensor
    said: Tensor


class AskedTeacher:
    """The teacher in front of the training split.

    Args:
        open_teacher: Loads the teacher; called once.
        dataset: Whose training split it is asked about.
        views: The view policy.
        device: Where the teacher is.
    """

    def __init__(
        self, open_teacher: OpenTeacher, dataset: Dataset, views: ViewsConfig, device: torch.device
    ) -> None:
        tapped, reader = open_teacher()
        self.tapped, self.reader = tapped.eval(), reader.eval()
        self.images, _ = dataset.split("train").tensors()
        self.mean, self.std = dataset.mean, dataset.std
        self.views, self.device = views, device

    def batches(self, view: int, samples: Tensor) -> Iterator[Answer]:
        """Ask about one view of `samples` `[N]` int64, batch by batch, without gradients."""
        step = _MOVED_BATCHES * BATCH_SIZE
        for first in range(0, len(samples), step):
            moved = samples[first : first + step]
            images, numbers = self.images[moved].to(self.device), moved.to(self.device)
            for start in range(0, len(moved), BATCH_SIZE):
                part = slice(start, start + BATCH_SIZE)
                yield self._ask(apply_views(images[part], numbers[part], view, self.views))

    @torch.inference_mode()
    def _ask(self, pixels: Tensor) -> Answer:
        outputs = self.tapped(normalise(pixels, self.mean, self.std))
        return Answer(pixels, self.reader(outputs))
