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
"""Every fifth image is held out of the fit if there is no validation data."""
MIN_IMAGES = 20


@dataclass(frozen=True)
class TeacherKnowledge:
    """The probes of a teacher, and the measures of its taps.

    Attributes:
        probes: Probes of every tap except the classifier.
        information_gain: `[D]` fp32.
        accuracy: `[D]` fp32, accuracy of each tap on the held-out images.
        num_held_out: Number of held-out images.
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
    """Fit a probe to every tap of a teacher, and measure all taps on held-out images.

    Args:
        teacher: Function that runs the teacher, without gradients.
        train: Batches of images and labels.
        held_out: Batches to measure on; with None, a fifth of `train` is held out, of every class.
        image_shape: `(C, H, W)`.
        max_images: Maximum number of images to read, from `train` and from `held_out`.
        device: Device of the teacher.
        grid: Grid on which the teacher's taps are read; 1 reads their means over all positions.

    Raises:
        UserError: If there are too few images, or if classes are missing.
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
    # The fit needs fp64, which Apple's GPUs do not have.
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

    Counting in the order of the loader could hold out whole classes, if it cycles through them;
    the probes would then be fitted without these classes.
    """
    by_class = labels.argsort(stable=True)
    held = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    held[by_class[HELD_OUT - 1 :: HELD_OUT]] = True
    return held


class FixedLinear(nn.Module):
    """A linear layer that is never changed, with the same names in the state as `nn.Linear`.

    Its weights are buffers, so that optimisers do not get them. It is not an `nn.Linear` either:
    code that changes all of those (`module.apply(initialise)`, adapters, another precision) would
    change the fitted weights without any visible sign.

    Args:
        linear: The layer whose weights are taken over.

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
        """Return `[B, K]` for `[B, F]`."""
        return F.linear(features, self.weight, self.bias)


def fixed(probes: Probes) -> Probes:
    """Return probes that are neither trained nor initialised again."""
    linears = [cast(nn.Linear, linear) for linear in probes.linears]
    probes.linears = nn.ModuleList(map(FixedLinear, linears))
    return probes


def take_from_first_worker(tensors: Iterable[Tensor], device: torch.device) -> None:
    """Copy the first worker's values to every worker, since each has read other images.

    Args:
        tensors: Changed in place.
        device: Device on which the workers can exchange tensors.
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

    The classifier then does not fit these labels: either the images were prepared differently when
    it was trained, or its classes have another order. A difference counts if it exceeds both three
    standard errors and three percentage points.

    Args:
        knowledge: The measures of the teacher's taps.
        names: Names of all taps except the classifier.

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
    # Two right and two wrong answers are added (Agresti and Coull): the error of a probe that is
    # right for all of few images is not 0.
    count = max(knowledge.num_held_out, 1) + 4
    share = (other * (count - 4) + 2.0) / count
    error = (share * (1.0 - share) / count) ** 0.5
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
    """Return pooled features and logits of the first images, their labels, and if they are all."""
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
        images, labels = read_pair(batch, where)
        if images.numel() or labels.numel():  # not all networks run on no images
            yield images, labels


def _rows(outputs: TapOutputs, rows: Tensor) -> TapOutputs:
    return TapOutputs(outputs.logits[rows], tuple(feature[rows] for feature in outputs.features))


def _check_classes(
    labels: Tensor, num_classes: int, max_images: int, where: str, whole: bool
) -> None:
    """Refuse images of a single class, which measure nothing, and partial reads lacking classes."""
    missing = (torch.bincount(labels, minlength=num_classes) == 0).nonzero().flatten().tolist()
    if missing and not whole:
        raise UserError(
            f"{where}: the first {max_images} images hold none of class "
            f"{', '.join(map(str, missing[:10]))}{', ...' if len(missing) > 10 else ''}; shuffle "
            "the loader, or let max_images be more."
        )
    if num_classes - len(missing) < 2:
        raise UserError(f"{where}: all images are of class {int(labels[0])}; two are needed.")
