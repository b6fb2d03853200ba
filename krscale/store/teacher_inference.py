"""Running the teacher on views of the training split, for stores and their checks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from krscale.data.augmentation.mixing import mix, partners
from krscale.data.augmentation.views import apply_views
from krscale.errors import NonFiniteError
from krscale.models.preprocessing import preprocessing_of_network
from krscale.store.manifest import ForwardPrecision
from krscale.store.spec import StoreSpec

BATCH_SIZE = 256
# Batches moved to the device at once: a copy before every batch would make a GPU wait for the host.
_MOVED_BATCHES = 8


@dataclass(frozen=True)
class TeacherBatch:
    """A batch of views and the teacher's outputs for it.

    Attributes:
        pixels: `[B, C, H, W]` uint8, the views.
        outputs: `[B, D, K]` tap logits or `[B, F]` features, fp32.
    """

    pixels: Tensor
    outputs: Tensor


class TeacherInference:
    """The teacher on the training split of a store's data.

    Args:
        spec: What the store is made of; its `open_teacher` is called once.
        precision: Precision of the forward of network and probes; outputs are always fp32.
    """

    def __init__(self, spec: StoreSpec, precision: ForwardPrecision = "fp32") -> None:
        self.precision = precision
        tapped, reader = spec.open_teacher()
        self.tapped, self.reader = tapped.eval(), reader.eval()
        self.split = spec.dataset.split("train", lazily=True)
        self.images, _ = self.split.tensors()
        self.preprocessing = preprocessing_of_network(tapped.model)
        self.mean, self.std = spec.dataset.mean, spec.dataset.std
        self.views, self.device = spec.views, spec.device

    def batches(self, view: int, samples: Tensor) -> Iterator[TeacherBatch]:
        """Yield the outputs for one view of `samples` `[N]` int64, without gradients."""
        step = _MOVED_BATCHES * BATCH_SIZE
        for first in range(0, len(samples), step):
            moved = samples[first : first + step]
            own = self._read(moved)
            others = None
            if self.views.mixes:
                others = self._read(partners(moved, view, self.views, len(self.images)))
            for start in range(0, len(moved), BATCH_SIZE):
                part = slice(start, start + BATCH_SIZE)
                pixels = apply_views(own[0][part], own[1][part], view, self.views)
                if others is not None:
                    other = apply_views(others[0][part], others[1][part], view, self.views)
                    pixels, _ = mix(pixels, other, own[1][part], view, self.views)
                yield self._forward(pixels)

    def _read(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images of samples, and the samples, on the device."""
        self.split.check(samples.cpu().numpy())
        return self.images[samples].to(self.device), samples.to(self.device)

    @torch.inference_mode()
    def _forward(self, pixels: Tensor) -> TeacherBatch:
        images = self.preprocessing.apply(pixels, self.mean, self.std)
        enabled = self.precision == "bf16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled):
            outputs = self.reader(self.tapped(images)).float()
        if not bool(outputs.isfinite().all()):
            raise NonFiniteError(
                "teacher: what it gives for a view of the training images is NaN or infinite; it "
                "cannot teach. Its weights are broken, or its images are not what it was trained "
                "on (teacher.preprocessing, views)."
            )
        return TeacherBatch(pixels, outputs)
