"""What a `KRLoss` refuses or warns of, so that it computes nothing else than was meant."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from krscale.config.methods import KRSettings
from krscale.errors import UserError
from krscale.knowledge.layouts import zeros
from krscale.knowledge.tap_search import evaluating
from krscale.knowledge.taps import TapOutputs, unwrapped
from krscale.methods.kr import KR
from krscale.models.tapped import TappedNetwork

_LOG = logging.getLogger(__name__)
_LOSSES_UNTIL_HEADS_MOVE = 100
"""Losses after which an optimiser has made a step, also one that sums the gradients of many."""
_AVERAGING = frozenset(
    {"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine"}
)
"""Classes of networks that give all workers the same gradients."""
_WEIGHTS = ("ce_weight", "kr_weight", "where_weight", "parameter_weight")


def checked_settings(values: Mapping[str, Any]) -> KRSettings:
    """Return the settings that keyword arguments name.

    Raises:
        UserError: If one is unknown or wrong, or nothing would be learnt with them.
    """
    if "posterior" in values:
        raise UserError(
            "KRLoss: posterior: to combine KR with a method on the logits, add its loss to this "
            "one, e.g. krscale.losses.dkd(...).mean()."
        )
    settings = KRSettings.from_keywords(values, "KRLoss")
    if not any(getattr(settings, name) for name in _WEIGHTS):
        raise UserError(f"KRLoss: {', '.join(_WEIGHTS)}: all are 0, so nothing would be learnt.")
    return settings


def check_apart(teacher: nn.Module, student: nn.Module, image_shape: Sequence[int]) -> None:
    """Refuse a student whose training would change its teacher, as it has layers of it.

    Frozen weights may be shared, and buffers that no training changes, such as the mean of the
    images; running statistics change in every step.

    Args:
        teacher: The teacher.
        student: The student; it is run in training mode where they share buffers, on copies.
        image_shape: `(C, H, W)`.

    Raises:
        UserError: Naming what they share.
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
    """Return which buffers a step of training changes in place; None where it cannot be told.

    The network itself stays as it is: copies take the place of its buffers.
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
    # What is written anew with the same values may be written with others in a later step.
    return {
        name for name, copy in copies.items() if copy._version or not torch.equal(copy, found[name])
    }


def _place(value: Tensor) -> tuple[torch.device, int] | None:
    """Return where the values of a tensor are; None of one that has none, or none yet."""
    if is_lazy(value) or not value.numel():
        return None
    return value.device, value.data_ptr()


def check_classes(teacher: TappedNetwork, student: TappedNetwork) -> None:
    """Refuse networks of different numbers of classes."""
    if teacher.num_classes != student.num_classes:
        raise UserError(
            f"the teacher has {teacher.num_classes} classes and the student "
            f"{student.num_classes}; both must have those of the labels."
        )


def check_outputs(student: object, teacher: object) -> None:
    """Refuse what are not outputs of both networks for the same number of images."""
    sizes = []
    for name, outputs in (("student", student), ("teacher", teacher)):
        if not isinstance(outputs, TapOutputs):
            raise UserError(
                f"KRLoss: the {name}'s outputs are what kr.{name}(images) returns, not "
                f"{type(outputs).__name__}."
            )
        sizes.append(len(outputs.logits))
    if sizes[0] != sizes[1]:  # one image might be compared with each of the others
        raise UserError(
            f"KRLoss: the student's outputs are of {sizes[0]} images and the teacher's of "
            f"{sizes[1]}; both must be of the same images."
        )


def check_same_device(student: Tensor, teacher: Tensor, labels: Tensor, loss: Tensor) -> None:
    """Refuse what is spread over several devices, between which nothing is copied here."""
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
    """Refuse outputs of a network that is another one than the loss was made for.

    Args:
        name: What the network is: `"student"`.
        outputs: Of it.
        network: As it was when the loss was made.
        taps: Numbers of those that are read, from 1.
        read: What makes of a tap's feature what is read of it.

    Raises:
        UserError: Naming the classifier or the tap, and both sizes.
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
    known = zip(network.paths, outputs.features, network.shapes, strict=False)
    for number, (path, feature, before) in enumerate(known, start=1):
        now = tuple(feature.shape[1:])
        if number in taps and now != before and _size_read(now, read) != _size_read(before, read):
            raise UserError(
                f"{where} tap {path!r} gives {list(now)} for an image, and gave {list(before)} "
                f"{since}, or the images are of another size. {anew}"
            )


def _size_read(shape: Sequence[int], read: Callable[[Tensor], Tensor]) -> int:
    """Return how many numbers are read of a tap with features of this shape."""
    return read(torch.empty(1, *shape, device="meta")).shape[1]


class LoopWatch:
    """Watches a loop of one's own for what is easily left out, and logs a warning of each once.

    What is left out changes the training and breaks nothing, so that no error would ever tell.
    """

    def __init__(self) -> None:
        self.told_of_epochs = False
        self._told_of_frozen = False
        self._num_losses = 0
        self._head_at_first = torch.zeros(0)
        self._apart: tuple[str, ...] = ()

    def on_run(self, method: KR, student: nn.Module) -> None:
        """Look at a student that is about to be run, and at what it is run within.

        Args:
            method: Whose heads are to learn.
            student: As its owner uses it, wrappers and all.
        """
        if not torch.compiler.is_compiling() and not self._num_losses:
            self._apart = _not_averaged(method, student)

    def on_loss(self, method: KR, logits: Tensor) -> None:
        """Look at a loss that is about to be computed.

        Args:
            method: Whose heads are to learn.
            logits: Of the student; without a gradient nothing is being trained.
        """
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        if not logits.requires_grad:
            if not self._told_of_frozen:
                self._told_of_frozen = True
                _LOG.warning(
                    "KRLoss: the student's logits have no gradient, so it learns nothing: all of "
                    "its weights are frozen, or it was run under torch.no_grad()."
                )
            return
        self._num_losses += 1
        heads = list(method.heads.parameters()) if method.teaches_heads else []
        if self._num_losses == 1:
            self._head_at_first = heads[-1].detach().cpu().clone() if heads else torch.zeros(0)
            if not self.told_of_epochs:
                _warn_of_schedules(method)
            if self._apart:
                _warn_of_workers(self._apart)
        if self._num_losses == _LOSSES_UNTIL_HEADS_MOVE and self._stands_still(heads):
            _LOG.warning(
                "KRLoss: its auxiliary heads have not changed in %d steps, so the student is "
                "fitted to heads that were never trained. Give the optimiser *kr.parameters() as "
                "well, or choose granularity=1, which has none.",
                self._num_losses,
            )

    def _stands_still(self, heads: Sequence[Tensor]) -> bool:
        return bool(heads) and torch.equal(heads[-1].detach().cpu(), self._head_at_first)


def _not_averaged(method: KR, student: nn.Module) -> tuple[str, ...]:
    """Return what every worker would train for itself, as nothing averages its gradients.

    A wrapper around both is seen while it runs.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return ()
    around: nn.Module | None = getattr(DistributedDataParallel, "_active_ddp_module", None)
    held = set() if around is None else {id(weight) for weight in around.parameters()}
    parts = {"the student": student, "its auxiliary heads": method.heads}
    apart = {
        name: part
        for name, part in parts.items()
        if any(weight.requires_grad and id(weight) not in held for weight in part.parameters())
    }
    kinds = {kind.__name__ for part in student.modules() for kind in type(part).__mro__}
    if _AVERAGING & kinds:
        apart.pop("the student", None)
    if not method.teaches_heads:
        apart.pop("its auxiliary heads", None)
    return tuple(apart)


def _warn_of_workers(apart: Sequence[str]) -> None:
    """Warn of what the workers train apart, so that each has another student or other heads."""
    _LOG.warning(
        "KRLoss: there are %d workers, and no DistributedDataParallel averages the gradients of "
        "%s, so that each worker trains its own. Wrap the student before KRLoss.from_networks and "
        "the loss after it, and call the wrapped loss; unless your loop averages them itself, or "
        "what is around both does (FSDP, DeepSpeed).",
        dist.get_world_size(),
        " and ".join(apart),
    )


def _warn_of_schedules(method: KR) -> None:
    """Warn of settings that change over the training, when nobody says how far that is."""
    settings = method.settings
    has_effect = {
        "auxiliary_schedule": len(method.heads) > 0 and settings.auxiliary_weight > 0.0,
        "where_schedule": method.where is not None,
        "sparsity_schedule": settings.sparsity > 0.0,
    }
    given = {name: getattr(settings, name) for name, has in has_effect.items() if has}
    changing = [f"{name}={value!r}" for name, value in given.items() if value != "constant"]
    if changing:
        _LOG.warning(
            "KRLoss: %s: what changes over the training stays as in its first epoch. Before every "
            "epoch call kr.begin_epoch(epoch / max(1, num_epochs - 1)), or choose 'constant'.",
            ", ".join(changing),
        )
