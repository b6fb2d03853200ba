"""Probes and checks of a teacher cover every class, whatever the order of the images."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from krscale.data import Split
from krscale.knowledge.taps import TappedModel
from krscale.setup import tap_reading
from krscale.setup.candidates import IMAGES_PER_CLASS, try_candidates
from krscale.setup.tap_reading import fit_probes

NUM_CLASSES = 4
CPU = torch.device("cpu")


def in_turns(num_images: int) -> Any:
    """Return a data set of grey 2x2 images that cycle through the classes."""
    labels = np.arange(num_images) % NUM_CLASSES
    images = np.broadcast_to(labels[:, None, None, None] * 60, (num_images, 1, 2, 2))
    split = Split(np.ascontiguousarray(images, np.uint8), labels)
    return SimpleNamespace(
        split=lambda name: split, classes=[str(n) for n in range(NUM_CLASSES)],
        num_classes=NUM_CLASSES, image_shape=(1, 2, 2), mean=(0.0,), std=(1.0,),
    )  # fmt: skip


class Nearest(nn.Module):
    """Right for every image, but with its classes shifted by one."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Identity()
        self.levels = nn.Parameter(torch.arange(NUM_CLASSES).roll(1) * 60 / 255)

    def forward(self, images: Tensor) -> Tensor:
        return -(self.block(images).mean(dim=(1, 2, 3))[:, None] - self.levels).square()


def test_a_probe_of_fewer_images_is_fitted_to_all_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap_reading, "MAX_NUMBERS", 32)  # 4 numbers an image: every second image
    fitted: list[Tensor] = []
    fit = tap_reading.fit_probe

    def fit_and_note(features: Tensor, labels: Tensor, num_classes: int) -> Any:
        fitted.append(labels)
        return fit(features, labels, num_classes)

    monkeypatch.setattr(tap_reading, "fit_probe", fit_and_note)
    fit_probes(TappedModel(Nearest().eval(), ("block",)), in_turns(16), CPU, grid=2)
    assert [labels.bincount(minlength=NUM_CLASSES).tolist() for labels in fitted] == [[2, 2, 2, 2]]


@pytest.mark.parametrize("times", [1, 2, 3])
def test_another_order_of_classes_is_found_among_images_in_turns(times: int) -> None:
    num_images = IMAGES_PER_CLASS * NUM_CLASSES
    tried = try_candidates(Nearest(), in_turns(times * num_images), num_images, other_sizes=False)
    assert np.bincount(tried.labels).tolist() == [IMAGES_PER_CLASS] * NUM_CLASSES
    best = max(tried.candidates, key=lambda candidate: candidate.reordered)
    assert best.accuracy < 0.5
    assert best.reordered == 1.0
