"""The information gain of each of a teacher's taps, measured on the batches of a data loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krscale.errors import UserError
from krscale.knowledge.batches import check_images, check_iterable, check_labels, read_pair
from krscale.knowledge.probes import Probes, are_bounded, fit_probe, information_gain, read_tap
from krscale.knowledge.taps import TapOutputs

HELD_OUT = 5
"""Every fifth image is held out of the fit where there is no validation data."""
MIN_IMAGES = 20


@dataclass(frozen=True)
class TeacherKnowledge:
    """The probes of a teacher and what they are worth.

    Attributes:
        probes: Of every tap but the classifier.
        information_gain: `[D]` fp32.
        accuracy: `[D]` fp32, of each tap on the images held out.
        num_held_out: How many these are.
        bounded: Whether all outputs of the classifier lie between 0 and 1, as after a sigmoid.
    """

    probes: Probes
    information_gain: Tensor
    accuracy: Tensor
    num_held_out: int
    bounded: bool = False


def measure(
    teacher: Callable[[Tensor], TapOutputs],
    train: Iterable[Any],
    held_out: Iterable[Any] | None,
    image_shape: tuple[int, ...],
    max_images: int,
    device: torch.device,
    grid: int = 1,
) -> TeacherKnowledge:
    """Fit a probe to every tap of a teacher, and measure all taps on images held out.

    Args:
        teacher: Runs it, without gradients.
        train: Batches of images and labels.
        held_out: The same, to measure on; None holds a fifth of `train` out, of every class.
        image_shape: `(C, H, W)`.
        max_images: Images to read at most, of each of the two.
        device: Where the teacher is.
        grid: On which its taps are read; 1 reads their means over all positions.

    Raises:
        UserError: If there are too few images, or classes among them have none.
    """
    read = partial(_read, teacher, grid, image_shape, max_images, device)
    outputs, labels, whole = read(train, "train_loader")
    num_classes = outputs.logits.shape[1]
    if held_out is None:
        held = _held_out(labels)
        test, test_labels = _rows(outputs, held), labels[held]
        outputs, labels = _rows(outputs, ~held), labels[~held]
    else:
        test, test_labels, all_held_out = read(held_out, "val_loader")
        _check_classes(test_labels, num_classes, max_images, "val_loader", all_held_out)
    _check_classes(labels, num_classes, max_images, "train_loader", whole)
    # fp64, which Apple's GPUs do not have.
    home = torch.device("cpu") if device.type == "mps" else device
    probes = Probes([feature.shape[1] for feature in outputs.features], num_classes, grid)
    fitted = [fit_probe(f.to(home), labels.to(home), num_classes) for f in outputs.features]
    probes.load(fitted)
    logits = probes(test)
    accuracy = (logits.argmax(dim=-1) == test_labels[:, None]).float().mean(dim=0)
    gain = information_gain(logits, test_labels)
    bounded = are_bounded(outputs.logits) and are_bounded(test.logits)
    return TeacherKnowledge(probes, gain, accuracy, len(test_labels), bounded)


def _held_out(labels: Tensor) -> Tensor:
    """Return which images are held out, `[N]` bool: every fifth, counted class by class.

    Counted as they come, whole classes would be held out of a loader that takes the classes in
    turn, and no probe would have seen them.
    """
    by_class = labels.argsort(stable=True)
    held = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    held[by_class[HELD_OUT - 1 :: HELD_OUT]] = True
    return held


class FixedLinear(nn.Module):
    """A linear layer that stays as it is, under the same names in a state.

    Its weights are buffers, so that no optimiser sees them. Nor is it an `nn.Linear`: what a loop
    does to all of those (`module.apply(initialise)`, adapters, another precision) would change what
    was fitted, and no number would tell.

    Args:
        linear: Whose weights it takes over.

    Example:
        >>> linear = nn.Linear(3, 2)
        >>> fixed, images = FixedLinear(linear), torch.ones(1, 3)
        >>> torch.equal(fixed(images), linear(images)), list(fixed.parameters())
        (True, [])
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", linear.weight.detach())
        self.register_buffer("bias", linear.bias.detach())

    def forward(self, features: Tensor) -> Tensor:
        """Return `[B, K]` of `[B, F]`."""
        return F.linear(features, self.weight, self.bias)


def fixed(probes: Probes) -> Probes:
    """Return probes that nothing trains and nothing initialises again."""
    linears = [cast(nn.Linear, linear) for linear in probes.linears]
    probes.linears = nn.ModuleList(map(FixedLinear, linears))
    return probes


def take_from_first_worker(tensors: Iterable[Tensor], device: torch.device) -> None:
    """Give every worker the first one's values: each has read other images.

    Args:
        tensors: Changed in place.
        device: Where the workers can exchange tensors.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    for tensor in tensors:
        shared = tensor.detach().to(device)
        torch.distributed.broadcast(shared, src=0)
        with torch.no_grad():
            tensor.copy_(shared)


def check_teacher(knowledge: TeacherKnowledge, names: tuple[str, ...]) -> None:
    """Refuse a teacher whose classifier is worse than a probe on one of its earlier taps.

    The classifier then does not fit these labels: the images were not prepared as when it was
    trained, or its classes are in another order. A difference counts from three standard errors and
    three points on.

    Args:
        knowledge: What was measured.
        names: Of all taps but the classifier.

    Raises:
        UserError: With both accuracies and the usual causes.
    """
    if knowledge.bounded:
        raise UserError(
            "teacher: all its outputs lie between 0 and 1, as after a softmax or a sigmoid, and "
            "logits are needed: leave that out. allow_poor_teacher=True goes on."
        )
    own = float(knowledge.accuracy[-1])
    best = int(knowledge.accuracy.argmax())
    other = float(knowledge.accuracy[best])
    error = (other * (1.0 - other) / max(knowledge.num_held_out, 1)) ** 0.5
    if best == len(names) or other - own <= max(3.0 * error, 0.03):
        return
    raise UserError(
        f"teacher: its classifier is right for {own:.1%} of {knowledge.num_held_out} images held "
        f"out, but a linear probe on its own tap {names[best]!r} for {other:.1%}. Are "
        "the images normalised, scaled, sized and ordered in their channels as when it was "
        "trained, and are its classes in the order of these labels? "
        "allow_poor_teacher=True goes on."
    )


def _read(
    teacher: Callable[[Tensor], TapOutputs],
    grid: int,
    image_shape: tuple[int, ...],
    max_images: int,
    device: torch.device,
    batches: Iterable[Any],
    where: str,
) -> tuple[TapOutputs, Tensor, bool]:
    """Return pooled features and logits of the first images, their labels, and if that is all."""
    logits: list[Tensor] = []
    features: list[tuple[Tensor, ...]] = []
    labels: list[Tensor] = []
    count, whole = 0, True
    for images, given in _pairs(batches, where):
        if count >= max_images:
            whole = False
            break
        check_images(images, image_shape, where)
        outputs = teacher(images.to(device))
        check_labels(given.cpu(), len(images), outputs.logits.shape[1], where)
        logits.append(outputs.logits.float().cpu())
        features.append(tuple(read_tap(feature, grid).cpu() for feature in outputs.features))
        _check_finite(images, (logits[-1], *features[-1]), where)
        labels.append(given.long().cpu())
        count += len(images)
    if count < MIN_IMAGES:
        raise UserError(f"{where}: it gave {count} images, and at least {MIN_IMAGES} are needed.")
    joined = tuple(torch.cat(of_tap) for of_tap in zip(*features, strict=True))
    return TapOutputs(torch.cat(logits), joined), torch.cat(labels), whole


def _check_finite(images: Tensor, outputs: Iterable[Tensor], where: str) -> None:
    if all(bool(output.isfinite().all()) for output in outputs):
        return
    cause = "" if bool(images.isfinite().all()) else ", which hold NaN or infinity themselves"
    raise UserError(f"{where}: the teacher gives NaN or infinity for some of its images{cause}.")


def _pairs(batches: Iterable[Any], where: str) -> Iterator[tuple[Tensor, Tensor]]:
    check_iterable(batches, where)
    for batch in batches:
        yield read_pair(batch, where)


def _rows(outputs: TapOutputs, rows: Tensor) -> TapOutputs:
    return TapOutputs(outputs.logits[rows], tuple(feature[rows] for feature in outputs.features))


def _check_classes(
    labels: Tensor, num_classes: int, max_images: int, where: str, whole: bool
) -> None:
    """Refuse images of one class, on which no tap tells anything, and a part that lacks classes."""
    missing = (torch.bincount(labels, minlength=num_classes) == 0).nonzero().flatten().tolist()
    if missing and not whole:
        raise UserError(
            f"{where}: the first {max_images} images hold none of class "
            f"{', '.join(map(str, missing[:10]))}{', ...' if len(missing) > 10 else ''}; shuffle "
            "the loader, or let max_images be more."
        )
    if num_classes - len(missing) < 2:
        raise UserError(f"{where}: all images are of class {int(labels[0])}; two are needed.")
