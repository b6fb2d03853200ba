"""Check by a forward pass before training that a network runs on the images and returns logits."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from krscale.errors import UserError
from krscale.knowledge.modes import copy_of, left_as_it_was
from krscale.knowledge.tap_search import evaluating
from krscale.models.capacity import meta_tensors
from krscale.models.foreign import located
from krscale.models.outputs import (
    LogitsReader,
    check_steady,
    differ,
    refuse_bounded,
    refuse_probabilities,
)
from krscale.models.preprocessing import input_shape
from krscale.models.state_dicts import non_finite

BATCH = 2
"""Number of images of the pass; batch norm in train mode needs more than one."""


def build_for_shapes(build: Callable[[], nn.Module], image_shape: Sequence[int]) -> nn.Module:
    """Return a network for reading shapes: on meta tensors if it can be built and run there.

    Networks that depend on values while they are built or run cannot; they are built on the CPU.

    Args:
        build: Builds the network.
        image_shape: `(C, H, W)`.
    """
    try:
        with meta_tensors(), warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # e.g. weights copied to meta tensors
            model = build()
        _run(model, input_shape(model, image_shape))
    except Exception:  # noqa: BLE001 - whatever it is, the real build says it better
        return build()
    return model


def check_network(
    model: nn.Module,
    num_classes: int,
    image_shape: Sequence[int],
    where: str,
    *,
    trained_here: bool = True,
) -> None:
    """Run a network once in eval and once in train mode, without changing it.

    Args:
        model: The network on any device, including meta.
        num_classes: Number of logits `K` that it must return.
        image_shape: `(C, H, W)`.
        where: The config table of the network, for error messages.
        trained_here: Whether to check train mode, too; some networks are never trained here.

    Raises:
        UserError: If it does not run, or returns anything but finite logits `[B, K]`.
    """
    image_shape = input_shape(model, image_shape)
    for training in (False, True)[: 1 + trained_here]:
        logits = _run_explained(model, image_shape, training, where)
        _check_logits(logits, num_classes, image_shape, where)
    _check_key(model, image_shape, where, trained_here)


def check_built(model: nn.Module, image_shape: Sequence[int], where: str) -> None:
    """Refuse a network with non-finite weights, or whose outputs are not reproducible logits.

    Args:
        model: The network, whose weights have values.
        image_shape: `(C, H, W)` of the data.
        where: The config table of the network, for error messages.
    """
    check_weights_are_finite(model, where)
    shape = input_shape(model, image_shape)
    refuse_probabilities(_run_explained(model, shape, False, where), where)
    with evaluating(model):
        check_steady(model, _ramp(model, shape), where)


def check_trainable(model: nn.Module, image_shape: Sequence[int], where: str) -> None:
    """Refuse to train a network whose outputs are not logits, see `refuse_bounded`.

    Args:
        model: The network, whose weights have values.
        image_shape: `(C, H, W)` of the data.
        where: The config table of the network, for error messages.
    """
    with evaluating(model):
        images = _ramp(model, input_shape(model, image_shape))
        refuse_bounded(model, lambda logits: logits, images, where)


def check_rebuilt(
    first: nn.Module, second: nn.Module, image_shape: Sequence[int], where: str
) -> None:
    """Refuse a network whose outputs depend on more than what is saved of it.

    A network is built again wherever its saved weights are loaded. What its constructor draws at
    random and keeps elsewhere, e.g. in a plain attribute, would then be another one, without an
    error. A network that does not run in this way is not examined.

    Args:
        first: The network; not modified.
        second: The network, built once more from another seed; not modified.
        image_shape: `(C, H, W)` of the data.
        where: The config table of the network, for error messages.

    Raises:
        UserError: If the second gives other outputs with the weights and buffers of the first.
    """
    images = _ramp(first, input_shape(first, image_shape))
    generator = torch.Generator().manual_seed(0)
    try:
        first, second = copy_of(first), copy_of(second)
        with evaluating(first), evaluating(second), torch.random.fork_rng(devices=[]):
            for weight in first.parameters():
                if weight.is_floating_point() and not bool(weight.any()):  # such a head hides all
                    drawn = torch.randn(weight.shape, generator=generator, device="cpu")
                    weight.copy_(0.1 * drawn)
            second.load_state_dict(first.state_dict())
            one, again, other = (network(images) for network in (first, first, second))
    except Exception:  # noqa: BLE001 - it need not run with any weights; so nothing is shown
        return
    if not differ(one, again) and differ(one, other):  # `check_steady` reports what varies
        raise UserError(
            f"{where}: the network is built with something random that is neither a parameter nor "
            "a buffer, so that it is not saved: built again with the same weights, it gives other "
            "outputs. Keep it as a buffer: self.register_buffer(NAME, TENSOR)."
        )


def check_weights_are_finite(model: nn.Module, where: str) -> None:
    """Refuse a network with NaN or infinity in its weights, or with a state of more than tensors.

    Raises:
        UserError: If there are such entries; the message names them.
    """
    state = model.state_dict()
    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        listed = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        raise UserError(
            f"{where}: the state of the network has entries that are not tensors, as quantised "
            f"networks have them: {listed}. krscale cannot save these: give the network before "
            "its quantisation, or let get_extra_state return a tensor."
        )
    if found := non_finite(state, dict(model.named_buffers(remove_duplicate=False))):
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise UserError(
            f"{where}: the weights hold NaN or infinity: {', '.join(found[:5])}{more}. "
            "The training they come from has failed; take an earlier checkpoint."
        )


def _run_explained(
    model: nn.Module, image_shape: Sequence[int], training: bool, where: str
) -> Tensor:
    mode = "train" if training else "eval"
    try:
        output = _run(model, image_shape, training)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{where}: the network does not run on images of shape {list(image_shape)} in {mode} "
            f"mode: {located(error)}. For a network of one size, {where}.preprocessing.input_size "
            "scales them."
        ) from error
    if not isinstance(output, Tensor):
        raise UserError(f"{where}: the network returns {type(output).__name__}, not a tensor.")
    return output


def _ramp(model: nn.Module, image_shape: Sequence[int]) -> Tensor:
    """Return `BATCH` images with pixels from -1 to 1, on a network's device."""
    tensors = [*model.parameters(), *model.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    shape = (BATCH, *image_shape)
    return torch.linspace(-1.0, 1.0, math.prod(shape), device=device).reshape(shape)


def _run(model: nn.Module, image_shape: Sequence[int], training: bool = False) -> Any:
    """Return the output for a ramp of pixels; change neither the network nor the random state."""
    images = _ramp(model, image_shape)
    running = model if images.is_meta or not training else copy_of(model)
    with left_as_it_was(running), torch.no_grad(), torch.random.fork_rng(devices=[]):
        running.train(training)
        return running(images)


def _check_logits(logits: Tensor, num_classes: int, image_shape: Sequence[int], where: str) -> None:
    shape = list(logits.shape)
    if shape == [BATCH, num_classes]:
        if not logits.is_meta and not bool(logits.isfinite().all()):
            raise UserError(
                f"{where}: the network gives NaN or infinity for pixels from -1 to 1; its weights "
                "are broken, or what it computes of them."
            )
        return
    if len(shape) == 2 and shape[0] == BATCH:
        raise UserError(
            f"{where}: the network gives {shape[1]} logits, the data have {num_classes} classes. "
            "One that takes the number of classes as an argument gets it from krscale."
        )
    raise UserError(
        f"{where}: the network gives a tensor of shape {shape} for {BATCH} images of shape "
        f"{list(image_shape)}; wanted: logits [{BATCH}, {num_classes}], one per class."
    )


def _check_key(
    model: nn.Module, image_shape: Sequence[int], where: str, trained_here: bool
) -> None:
    """Refuse a key if the network returns a tensor in all modes: it would have no effect."""
    readers = [hook for hook in model._forward_hooks.values() if isinstance(hook, LogitsReader)]
    if not any(reader.key for reader in readers):
        return
    seen: list[type] = []

    def look(module: nn.Module, arguments: Any, output: Any) -> None:
        seen.append(type(output))

    handle = model.register_forward_hook(look, prepend=True)
    try:
        for training in (False, True)[: 1 + trained_here]:
            _run(model, image_shape, training)
    finally:
        handle.remove()
    if seen and all(issubclass(kind, Tensor) for kind in seen):
        raise UserError(
            f"{where}.output_key: {readers[0].key!r} is set, but the network returns a single "
            "tensor; leave the key out."
        )
