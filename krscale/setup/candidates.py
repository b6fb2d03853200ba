"""Try the usual kinds of preprocessing on a network to find the one it was trained with.

A network that was trained elsewhere gives no error with the wrong preprocessing, only worse
results. The preprocessing that it was trained with gives the best ones.
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
from krscale.data.splits.stratify import of_every_class
from krscale.errors import UserError, first_line
from krscale.models.metadata import preprocessing_of
from krscale.models.preprocessing import PRESETS, Preprocessing, preprocessing_of_network

SIDES = (32, 64, 96, 128, 224)
"""Sizes at which networks are commonly trained; those far from the data's own are not tried."""
NEAREST = 0.05
"""Share of the images by which a candidate must be better to count as different."""
SURE = 1e-3
"""A difference counts if its probability by chance is below this."""
IMAGES_PER_CLASS = 6
"""With fewer images per class, the order of the classes cannot be determined."""
_CAFFE = ((103.939, 116.779, 123.68), (1.0,))
_BATCH_SIZE = 128
_FEW = 4

Classes = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Candidate:
    """One kind of preprocessing, and a network's results with it.

    Attributes:
        name: Name of its normalisation.
        preprocessing: The complete preprocessing.
        accuracy: Share of the images that are classified correctly.
        reordered: The same with the best order of classes, which is found on one half of the images
            and evaluated on the other.
        order: The network's class for each of our classes, as found on all images.
        answers: The class that the network predicts for each image.
    """

    name: str
    preprocessing: Preprocessing
    accuracy: float
    reordered: float
    order: tuple[int, ...]
    answers: Classes


@dataclass(frozen=True)
class Tried:
    """The candidates that were tried, the best first.

    Attributes:
        candidates: All candidates with which the network ran.
        configured: The current preprocessing of the experiment.
        refused: Sizes that the network does not take, with its error message.
        labels: Labels of the images.
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
        """The best candidate with reordered classes, if reordering is clearly better; else None."""
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
    """Evaluate a network on validation images with all usual kinds of preprocessing.

    First try all normalisations at the likely sizes, then the best few at other sizes, then all of
    them at the best size.

    Args:
        network: The trained network on its device, with the experiment's preprocessing; left in
            eval mode.
        dataset: The data set whose validation split is used.
        num_images: Maximum number of images; every class has its share of them.
        other_sizes: Whether to try other input sizes than the experiment's, too.

    Raises:
        UserError: If the network runs with none of them.
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
            continue  # images are never so much smaller or larger than a network's size
        trial.ask(few, (side, side))
    size = trial.best()[0].preprocessing.input_size
    trial.ask(_normalisations(own, said, trial.num_channels), size)
    return trial.result()


def is_better(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> bool:
    """Return whether predictions are clearly more accurate than others, and not by chance.

    Args:
        one: `[N]`, whether each prediction is correct.
        other: `[N]`, the same for the other predictions on the same images.
    """
    # This import takes half a second, which most processes can avoid.
    from scipy.stats import binomtest  # type: ignore[import-untyped]

    won, lost = int((one & ~other).sum()), int((other & ~one).sum())
    if won - lost < NEAREST * len(one):
        return False
    return bool(binomtest(won, won + lost, alternative="greater").pvalue < SURE)


def as_settings(preprocessing: Preprocessing, image_shape: Sequence[int]) -> dict[str, Any]:
    """Return the fields of `[teacher.preprocessing]` that select it, with TOML types.

    All fields are included, since omitted ones would be taken from the network's metadata.

    Args:
        preprocessing: Preprocessing of a candidate.
        image_shape: `(C, H, W)` of the data, whose size is used if the preprocessing has none.
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
    """Return the name of a preset with these numbers; None if there is none."""
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
    """One network, evaluated repeatedly on the same images."""

    def __init__(self, network: nn.Module, dataset: Dataset, num_images: int) -> None:
        self.network, self.dataset = network, dataset
        self.configured = preprocessing_of_network(network)
        self.split = _spread(dataset.split("val"), num_images)
        self.num_channels = dataset.image_shape[0]
        self.found: dict[Preprocessing, Candidate] = {}
        self.refused: dict[str, str] = {}

    def ask(self, named: Sequence[tuple[str, Preprocessing]], size: tuple[int, int] | None) -> None:
        """Evaluate each normalisation at a size, unless that was done before."""
        if size == self.dataset.image_shape[1:]:
            size = None
        for name, preprocessing in named:
            sized = replace(preprocessing, input_size=size)
            if sized not in self.found:
                self._ask(name, sized)

    def best(self, number: int = 1) -> list[Candidate]:
        """Return the most accurate candidates, with the classes in any order."""
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
        except Exception as error:  # noqa: BLE001 - a network of one size may raise any
            text = first_line(error)
            self.refused.setdefault(size_name(preprocessing, self.dataset), text)
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
    """Return the size of a network's input images, e.g. `32x32`."""
    return "x".join(str(side) for side in preprocessing.input_shape(dataset.image_shape)[1:])


def _normalisations(
    own: Preprocessing, said: Preprocessing | None, num_channels: int
) -> list[tuple[str, Preprocessing]]:
    """Return the usual normalisations by name, the likely ones first."""
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
    """Return the accuracy with the best order of classes, and that order."""
    even = np.zeros(len(labels), bool)
    even[of_every_class(labels, (len(labels) + 1) // 2)] = True
    right = np.zeros(len(labels), bool)
    for half in (even, ~even):
        order = np.array(_order(answers[half], labels[half], num_classes))
        right[~half] = answers[~half] == order[labels[~half]]
    return float(right.mean()), _order(answers, labels, num_classes)


def _order(answers: Classes, labels: Classes, num_classes: int) -> tuple[int, ...]:
    """Return for each of our classes the network's class that matches it most often."""
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    table = np.zeros((num_classes, num_classes), np.int64)
    inside = answers < num_classes
    np.add.at(table, (labels[inside], answers[inside]), 1)
    # A class without correct matches keeps its number if that is free.
    table = table * 2 * num_classes + np.eye(num_classes, dtype=np.int64)
    _, columns = linear_sum_assignment(table, maximize=True)
    return tuple(int(column) for column in columns)


def _spread(split: Split, num_images: int) -> Split:
    rows = of_every_class(split.labels, num_images)
    return Split(split.images[rows], split.labels[rows])
