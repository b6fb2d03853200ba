"""The usual ways to prepare images, tried on a network: which one was it trained with?

A network that was trained elsewhere is silent about a wrong preprocessing: it answers, only worse.
What it was trained with is what it is best with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from krscale.data import Dataset, Split
from krscale.errors import UserError
from krscale.models.metadata import preprocessing_of
from krscale.models.preprocessing import PRESETS, Preprocessing, preprocessing_of_network

SIDES = (32, 64, 96, 128, 224)
"""Sizes that networks are commonly trained at; those far from the data's own are not tried."""
NEAREST = 0.05
"""Share of the images by which one way must be better than another to count as another way."""
SURE = 1e-3
"""Probability of a difference by chance below which it counts."""
IMAGES_PER_CLASS = 6
"""Fewer images of a class say nothing of the order of the classes."""
_CAFFE = ((103.939, 116.779, 123.68), (1.0,))
_BATCH_SIZE = 128
_FEW = 4

Classes = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to prepare images, and what a network makes of them.

    Attributes:
        name: Of its normalisation.
        preprocessing: All of it.
        accuracy: Share of the images that are right.
        reordered: The same with the classes in the order that suits best; that order is found on
            one half of the images and counted on the other.
        order: Our class -> the class of the network, as found on all images.
        answers: The class that the network says of each image.
    """

    name: str
    preprocessing: Preprocessing
    accuracy: float
    reordered: float
    order: tuple[int, ...]
    answers: Classes


@dataclass(frozen=True)
class Tried:
    """What was tried, the best first.

    Attributes:
        candidates: All that the network could answer.
        configured: The one that the experiment has now.
        refused: Sizes that the network does not take, with its reason.
        labels: Of the images.
    """

    candidates: tuple[Candidate, ...]
    configured: Candidate | None
    refused: dict[str, str]
    labels: Classes

    @property
    def best(self) -> Candidate:
        """The configured one, unless another is clearly better."""
        first = self.candidates[0]
        if self.configured is None or self._is_better(first.answers, self.configured.answers):
            return first
        return self.configured

    @property
    def reordered(self) -> Candidate | None:
        """The best with another order of classes, where only that makes it right."""
        found = max(self.candidates, key=lambda candidate: candidate.reordered)
        if found.reordered < self.best.accuracy + NEAREST:
            return None
        inverse = np.argsort(np.array(found.order))
        return found if self._is_better(inverse[found.answers], self.best.answers) else None

    def _is_better(self, one: Classes, other: Classes) -> bool:
        return is_better(one == self.labels, other == self.labels)


def try_candidates(
    network: nn.Module, dataset: Dataset, num_images: int, *, other_sizes: bool = True
) -> Tried:
    """Ask a network about validation images in every usual way.

    First all normalisations at the sizes that are likely, then the best few at others, then all
    again at the size that turned out best.

    Args:
        network: Trained, on its device, with the experiment's preprocessing; left in eval mode.
        dataset: Its validation split is asked about.
        num_images: At most so many images, spread over the split.
        other_sizes: Whether to try other input sizes than the experiment's, too.

    Raises:
        UserError: If the network can be asked in none of them.
    """
    trial = _Trial(network.eval(), dataset, num_images)
    own = trial.configured
    said = preprocessing_of(network)
    sizes = {own.input_size}
    if other_sizes:
        sizes |= {None} | ({said.input_size} if said else set())
    for size in sorted(sizes, key=lambda size: (size != own.input_size, size or (0, 0))):
        trial.ask(_normalisations(own, said, trial.num_channels), size)
    if not trial.found:
        reasons = "; ".join(f"{size}: {reason}" for size, reason in trial.refused.items())
        raise UserError(f"teacher: the network takes no images of these sizes: {reasons}.")
    if not other_sizes:
        return trial.result()
    few = [("as set", own), *((one.name, one.preprocessing) for one in trial.best(_FEW))]
    height, width = dataset.image_shape[1:]
    for side in SIDES:
        if min(height, width) > 2 * side or 8 * max(height, width) < side:
            continue  # nobody takes images so much smaller, or larger, than the network's
        trial.ask(few, (side, side))
    size = trial.best()[0].preprocessing.input_size
    trial.ask(_normalisations(own, said, trial.num_channels), size)
    return trial.result()


def is_better(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> bool:
    """Return whether answers are right more often than others, clearly and not by chance.

    Args:
        one: `[N]`, whether each answer is right.
        other: `[N]`, of the same images.
    """
    # Half a second, which most processes need not pay.
    from scipy.stats import binomtest  # type: ignore[import-untyped]

    won, lost = int((one & ~other).sum()), int((other & ~one).sum())
    if won - lost < NEAREST * len(one):
        return False
    return bool(binomtest(won, won + lost, alternative="greater").pvalue < SURE)


def as_settings(preprocessing: Preprocessing, image_shape: Sequence[int]) -> dict[str, Any]:
    """Return the fields of `[teacher.preprocessing]` that mean it, as TOML has them.

    Every field is there: one that is left out is what the network's metadata say.

    Args:
        preprocessing: Of a candidate.
        image_shape: `(C, H, W)` of the data, whose size is meant where it has none of its own.
    """
    name = _preset_name(preprocessing)
    numbers = {"mean": list(preprocessing.mean or ()), "std": list(preprocessing.std or ())}
    return {
        **({"normalisation": name} if name is not None else numbers),
        "pixel_range": preprocessing.pixel_range,
        "channel_order": preprocessing.channel_order,
        "input_size": list(preprocessing.input_shape(image_shape)[1:]),
        "interpolation": preprocessing.interpolation,
    }


def _preset_name(preprocessing: Preprocessing) -> str | None:
    """Return the name under which an experiment has these numbers; None where it has none."""
    if preprocessing.mean is None or preprocessing.std is None:
        return "data"
    step = -1 if preprocessing.channel_order == "bgr" else 1
    found = tuple(
        numbers[:1] if len(set(numbers)) == 1 else numbers[::step]  # one number for all channels
        for numbers in (preprocessing.mean, preprocessing.std)
    )
    for name, preset in PRESETS.items():
        if found == preset and (preprocessing.pixel_range == "0..1" or name == "none"):
            return name
    return None


class _Trial:
    """One network, asked about the same images again and again."""

    def __init__(self, network: nn.Module, dataset: Dataset, num_images: int) -> None:
        self.network, self.dataset = network, dataset
        self.configured = preprocessing_of_network(network)
        self.split = _spread(dataset.split("val"), num_images)
        self.num_channels = dataset.image_shape[0]
        self.found: dict[Preprocessing, Candidate] = {}
        self.refused: dict[str, str] = {}

    def ask(self, named: Sequence[tuple[str, Preprocessing]], size: tuple[int, int] | None) -> None:
        """Ask with each normalisation at a size, unless that has been asked."""
        if size == self.dataset.image_shape[1:]:
            size = None
        for name, preprocessing in named:
            sized = replace(preprocessing, input_size=size)
            if sized not in self.found:
                self._ask(name, sized)

    def best(self, number: int = 1) -> list[Candidate]:
        """Return the candidates that are right most often, in whatever order of classes."""
        found = list(self.found.values())
        found.sort(key=lambda one: -max(one.accuracy, one.reordered - NEAREST))
        return found[:number]

    def result(self) -> Tried:
        """Return all that was found, the best first."""
        configured = self.found.get(replace(self.configured, input_size=self._own_size()))
        ordered = sorted(self.found.values(), key=lambda one: -one.accuracy)
        return Tried(tuple(ordered), configured, self.refused, self.split.labels)

    def _own_size(self) -> tuple[int, int] | None:
        size = self.configured.input_size
        return None if size == self.dataset.image_shape[1:] else size

    def _ask(self, name: str, preprocessing: Preprocessing) -> None:
        try:
            answers = self._answers(preprocessing)
        except (RuntimeError, ValueError, AssertionError) as error:
            # A network of a fixed size says so in words of its own.
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            self.refused.setdefault(size_name(preprocessing, self.dataset), reason)
            return
        labels, num_classes = self.split.labels, self.dataset.num_classes
        right, order = answers == labels, tuple(range(num_classes))
        accuracy = reordered = float(right.mean())
        if len(labels) >= IMAGES_PER_CLASS * num_classes:
            reordered, order = _reordered(answers, labels, num_classes)
        self.found[preprocessing] = Candidate(
            name, preprocessing, accuracy, reordered, order, answers
        )

    @torch.inference_mode()
    def _answers(self, preprocessing: Preprocessing) -> Classes:
        device = next(iter(self.network.parameters()), torch.empty(0)).device
        mean, std = self.dataset.mean, self.dataset.std
        answers = []
        for first in range(0, len(self.split.labels), _BATCH_SIZE):
            pixels = torch.tensor(self.split.images[first : first + _BATCH_SIZE], device=device)
            logits = self.network(preprocessing.apply(pixels, mean, std))
            answers.append(logits.argmax(dim=1).cpu().numpy())
        return np.concatenate(answers)


def size_name(preprocessing: Preprocessing, dataset: Dataset) -> str:
    """Return the size of a network's images, e.g. `32x32`."""
    return "x".join(str(side) for side in preprocessing.input_shape(dataset.image_shape)[1:])


def _normalisations(
    own: Preprocessing, said: Preprocessing | None, num_channels: int
) -> list[tuple[str, Preprocessing]]:
    """Return the usual normalisations by name, those that are likely first."""
    named = [("as set", own)]
    if said is not None:
        named.append(("its metadata", said))
    named += [(name, plain) for name, plain in _presets(own.interpolation, num_channels)]
    return [(name, one) for name, one in named if _fits(one, num_channels)]


def _presets(interpolation: str, num_channels: int) -> Iterator[tuple[str, Preprocessing]]:
    orders = ("rgb", "bgr") if num_channels == 3 else ("rgb",)
    for order in orders:
        rest = {"channel_order": order, "interpolation": interpolation}
        yield "data", Preprocessing(**rest)  # type: ignore[arg-type]
        for name, (mean, std) in PRESETS.items():
            step = -1 if order == "bgr" else 1
            yield name, Preprocessing(mean[::step], std[::step], **rest)  # type: ignore[arg-type]
        yield "none", Preprocessing((0.0,), (1.0,), "0..255", **rest)  # type: ignore[arg-type]
    if num_channels == 3:
        yield "caffe", Preprocessing(*_CAFFE, "0..255", "bgr", interpolation=interpolation)


def _fits(preprocessing: Preprocessing, num_channels: int) -> bool:
    return preprocessing.mean is None or len(preprocessing.mean) in (1, num_channels)


def _reordered(
    answers: Classes, labels: Classes, num_classes: int
) -> tuple[float, tuple[int, ...]]:
    """Return the accuracy with the classes in the order that suits best, and that order."""
    even = np.arange(len(labels)) % 2 == 0
    right = np.zeros(len(labels), bool)
    for half in (even, ~even):
        order = np.array(_order(answers[half], labels[half], num_classes))
        right[~half] = answers[~half] == order[labels[~half]]
    return float(right.mean()), _order(answers, labels, num_classes)


def _order(answers: Classes, labels: Classes, num_classes: int) -> tuple[int, ...]:
    """Return for each of our classes the network's own that it stands for most often."""
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    table = np.zeros((num_classes, num_classes), np.int64)
    inside = answers < num_classes
    np.add.at(table, (labels[inside], answers[inside]), 1)
    # A class that was never seen keeps its number where that is free.
    table = table * 2 * num_classes + np.eye(num_classes, dtype=np.int64)
    _, columns = linear_sum_assignment(table, maximize=True)
    return tuple(int(column) for column in columns)


def _spread(split: Split, num_images: int) -> Split:
    rows = np.unique(np.linspace(0, len(split) - 1, min(num_images, len(split))).astype(np.int64))
    return Split(split.images[rows], split.labels[rows])
