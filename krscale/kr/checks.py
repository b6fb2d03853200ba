"""Checks that make a `KRLoss` refuse wrong input instead of computing something unintended."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy

from krscale.config.methods import KRSettings
from krscale.errors import UserError
from krscale.knowledge.layouts import zeros
from krscale.knowledge.tap_search import evaluating
from krscale.knowledge.taps import TapOutputs, unwrapped
from krscale.models.tapped import TappedNetwork

_WEIGHTS = ("ce_weight", "kr_weight", "where_weight", "parameter_weight")


def checked_settings(values: Mapping[str, Any]) -> KRSettings:
    """Validate keyword arguments and return the settings.

    Raises:
        UserError: If a setting is unknown or invalid, or if all weights are 0, so that nothing
            would be learnt.
    """
    if "posterior" in values:
        raise UserError(
            "KRLoss: posterior: to combine KR with a method on the logits, add its loss to this "
            "one, e.g. krscale.losses.dkd(...).mean()."
        )
    settings = KRSettings.from_keywords(values, "KRLoss")
    if settings.auxiliary_interval != 1:
        raise UserError(
            "KRLoss: auxiliary_interval: krscale's own training counts the steps, and this loss "
            f"cannot: only 1 is allowed (got {settings.auxiliary_interval})."
        )
    if not any(getattr(settings, name) for name in _WEIGHTS):
        raise UserError(f"KRLoss: {', '.join(_WEIGHTS)}: all are 0, so nothing would be learnt.")
    return settings


def check_apart(teacher: nn.Module, student: nn.Module, image_shape: Sequence[int]) -> None:
    """Refuse a student that shares trained weights or changing buffers with its teacher.

    Training such a student would change the teacher. Frozen weights may be shared. So may buffers
    that training does not change, such as the mean of the images. Running statistics may not: they
    change in every step.

    Args:
        teacher: The teacher.
        student: The student. If it shares buffers with the teacher, it is run once in training
            mode, on copies of its buffers.
        image_shape: `(C, H, W)`.

    Raises:
        UserError: With the names of the shared weights and buffers.
    """
    if unwrapped(teacher) is unwrapped(student):
        raise UserError("KRLoss: teacher and student are one and the same network.")
    taught = {_place(value) for value in (*teacher.parameters(), *teacher.buffers())} - {None}
    network = unwrapped(student)
    trained = [pair for pair in network.named_parameters() if pair[1].requires_grad]
    shared = [name for name, value in trained if _place(value) in taught]
    buffers = [name for name, value in network.named_buffers() if _place(value) in taught]
    if buffers:
        changed = _changed_by_training(network, image_shape)
        shared += [name for name in buffers if changed is None or name in changed]
    if shared:
        more = f" and {len(shared) - 3} more" if len(shared) > 3 else ""
        raise UserError(
            f"KRLoss: the student's {', '.join(shared[:3])}{more} are the teacher's own, so that "
            "training it would change the teacher. Give it copies: copy.deepcopy."
        )


def _changed_by_training(network: nn.Module, image_shape: Sequence[int]) -> set[str] | None:
    """Return the buffers that a training step changes in place; None if this cannot be determined.

    The network itself is not changed: the step runs on copies of its buffers.
    """
    found = {name: value for name, value in network.named_buffers() if not is_lazy(value)}
    copies = {name: value.clone() for name, value in found.items()}
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, *image_shape, generator=generator, device="cpu")
    images = images.to(zeros(network, image_shape))
    devices = [images.device] if images.device.type == "cuda" else []
    with evaluating(network), torch.random.fork_rng(devices):
        network.train()
        try:
            functional_call(network, copies, (images,))
        except Exception:  # noqa: BLE001 - it may not train on such images; so nothing is shown
            return None
    # A buffer that was rewritten with equal values may get other values in a later step.
    return {
        name for name, copy in copies.items() if copy._version or not torch.equal(copy, found[name])
    }


def _place(value: Tensor) -> tuple[torch.device, int] | None:
    """Return the device and address of a tensor's values; None if it is empty or uninitialised."""
    if is_lazy(value) or not value.numel():
        return None
    return value.device, value.data_ptr()


def check_classes(teacher: TappedNetwork, student: TappedNetwork) -> None:
    """Refuse networks with different numbers of classes."""
    if teacher.num_classes != student.num_classes:
        raise UserError(
            f"the teacher has {teacher.num_classes} classes and the student "
            f"{student.num_classes}; both must have those of the labels."
        )


def check_outputs(student: object, teacher: object) -> None:
    """Refuse arguments that are not outputs of both networks for the same number of images."""
    sizes = []
    for name, outputs in (("student", student), ("teacher", teacher)):
        if not isinstance(outputs, TapOutputs):
            raise UserError(
                f"KRLoss: the {name}'s outputs are what kr.{name}(images) returns, not "
                f"{type(outputs).__name__}."
            )
        sizes.append(len(outputs.logits))
    if sizes[0] != sizes[1]:  # broadcasting would compare one image with all the others
        raise UserError(
            f"KRLoss: the student's outputs are of {sizes[0]} images and the teacher's of "
            f"{sizes[1]}; both must be of the same images."
        )


def check_same_device(student: Tensor, teacher: Tensor, labels: Tensor, loss: Tensor) -> None:
    """Refuse tensors on different devices; the loss copies nothing between devices."""
    named = {"the student's logits": student, "the teacher's": teacher, "labels": labels}
    places = {name: tensor.device for name, tensor in (*named.items(), ("this loss", loss))}
    if len(set(places.values())) > 1:
        found = ", ".join(f"{name} on {device}" for name, device in places.items())
        raise UserError(
            f"KRLoss: all must be on one device: {found}. kr.to(device) moves the loss and the "
            "teacher; the student and the batches are yours to move."
        )


def check_shapes(
    name: str,
    outputs: TapOutputs,
    network: TappedNetwork,
    taps: Collection[int],
    read: Callable[[Tensor], Tensor],
) -> None:
    """Refuse outputs of a network other than the one that the loss was made for.

    Args:
        name: The role of the network: `"student"` or `"teacher"`.
        outputs: Outputs of the network.
        network: The network as it was when the loss was made.
        taps: Numbers of the taps that are read, from 1.
        read: Maps a tap's feature to the values that are read from it.

    Raises:
        UserError: If the classifier or a tap changed its size (the message gives both sizes), or
            if the outputs are of other taps.
    """
    where = f"KRLoss: the {name}'s"
    since = "when this loss was made: it was replaced since"
    anew = "Replace parts of a network before KRLoss.from_networks, or make a new loss."
    num_classes = outputs.logits.shape[1]
    if num_classes != network.num_classes:
        raise UserError(
            f"{where} classifier gives {num_classes} classes, and gave {network.num_classes} "
            f"{since}. {anew}"
        )
    deepest = max([0, *(tap for tap in taps if tap <= len(network.paths))])
    others = outputs.paths not in ((), network.paths) or len(outputs.features) < deepest
    if deepest and others:
        raise UserError(
            f"{where} outputs are of other taps ({', '.join(outputs.paths) or 'none'}) than are "
            f"read here ({', '.join(network.paths)}): take those of this loss's own "
            f"kr.{name}(images)."
        )
    known = zip(network.paths, outputs.features, network.shapes, strict=False)
    for number, (path, feature, before) in enumerate(known, start=1):
        if number in taps and len(feature) != len(outputs.logits):
            raise UserError(
                f"{where} tap {path!r} gives {len(feature)} rows for {len(outputs.logits)} images: "
                "it must give one for each, in training mode as well. Tap another block."
            )
        now = tuple(feature.shape[1:])
        if number in taps and now != before and _size_read(now, read) != _size_read(before, read):
            raise UserError(
                f"{where} tap {path!r} gives {list(now)} for an image, and gave {list(before)} "
                f"{since}, or the images are of another size. {anew}"
            )


def _size_read(shape: Sequence[int], read: Callable[[Tensor], Tensor]) -> int:
    """Return how many numbers are read from a tap with features of this shape."""
    return read(torch.empty(1, *shape, device="meta")).shape[1]
