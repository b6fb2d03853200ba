"""What a method learns from: a batch of images, their labels, and the teacher's outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from krscale.errors import KrscaleError
from krscale.knowledge.features import FeatureKind

UNLABELLED = -1
"""The label of an image that has none (`data.unlabelled`); it is learned from the teacher alone."""


class Mixture(NamedTuple):
    """The second label of each image that is mixed from two (`views.mixup`, `views.cutmix`).

    Attributes:
        labels: `[B]` int64, labels of the images that were mixed in.
        weights: `[B]` fp32 in (0, 1), weights of the samples' own labels; `labels` have the rest.
    """

    labels: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Batch:
    """One worker's share of a global batch, on the device.

    Attributes:
        images: `[B, C, H, W]` fp32, the view as the student takes it.
        labels: `[B]` int64; `UNLABELLED` for images without one.
        samples: `[B]` int64, index of each sample within its split.
        tap_logits: `[B, D, K]` fp32, finite: the teacher's logits at each tap in depth order, its
            own classifier last. They are defined up to an additive constant per tap, so that
            `softmax(tap_logits / temperature)` is `q_d` at any temperature. None if the method
            needs no teacher.
        global_size: Samples of this batch over all workers.
        teacher_features: Teacher features that the method needs beyond `tap_logits`, by kind and
            without gradient: one tensor `[B, ...]` for each shape of that kind
            (`krscale.knowledge.features`).
        mixture: Labels and weights of the images that were mixed in; None without mixing.
    """

    images: Tensor
    labels: Tensor
    samples: Tensor
    tap_logits: Tensor | None
    global_size: int
    teacher_features: Mapping[FeatureKind, tuple[Tensor, ...]] = field(default_factory=dict)
    mixture: Mixture | None = None

    def rows(self, start: int, stop: int) -> Batch:
        """Return samples `start` to `stop`; `global_size` stays the same."""
        part, mixture = slice(start, stop), self.mixture
        return replace(
            self,
            images=self.images[part],
            labels=self.labels[part],
            samples=self.samples[part],
            tap_logits=None if self.tap_logits is None else self.tap_logits[part],
            teacher_features={
                kind: tuple(feature[part] for feature in features)
                for kind, features in self.teacher_features.items()
            },
            mixture=mixture and Mixture(mixture.labels[part], mixture.weights[part]),
        )


def label_cross_entropy(
    student_logits: Tensor,
    labels: Tensor,
    mixture: Mixture | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the cross-entropy with the labels, or with both labels of mixed images, `[B]` fp32.

    It is 0, without gradient, for images with the label `UNLABELLED`.

    Args:
        student_logits: `[B, K]`.
        labels: `[B]` int64.
        mixture: `Batch.mixture`; its labels are `UNLABELLED` where `labels` are.
        label_smoothing: Share of every label that is spread over all classes.
    """
    logits = student_logits.float()

    def cross_entropy(classes: Tensor) -> Tensor:
        return F.cross_entropy(
            logits,
            classes,
            reduction="none",
            label_smoothing=label_smoothing,
            ignore_index=UNLABELLED,
        )

    if mixture is None:
        return cross_entropy(labels)
    own, other = cross_entropy(labels), cross_entropy(mixture.labels)
    return mixture.weights * own + (1.0 - mixture.weights) * other


def classes_of(labels: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return the class of every image, `[B]` int64: its label, or else the teacher's likeliest one.

    Args:
        labels: `[B]` int64; `UNLABELLED` for images without one.
        teacher_logits: `[B, K]`, logits of the teacher's classifier.

    Example:
        >>> classes_of(torch.tensor([2, -1]), torch.tensor([[5.0, 0.0, 0.0], [0.0, 3.0, 1.0]]))
        tensor([2, 1])
    """
    return torch.where(labels == UNLABELLED, teacher_logits.argmax(dim=-1), labels)


def teacher_knowledge(batch: Batch) -> Tensor:
    """Return the teacher's tap logits for the batch, `[B, D, K]` fp32 without gradient.

    Raises:
        KrscaleError: If the batch carries no teacher outputs.
    """
    if batch.tap_logits is None:
        raise KrscaleError(
            "this method learns from a teacher, but the batch carries no tap_logits; "
            "build the loader with the teacher's store"
        )
    return batch.tap_logits.detach().float()
