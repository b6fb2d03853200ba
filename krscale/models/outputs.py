"""Read logits from what a network returns: a tensor, or one of several by name or position.

Networks of other libraries return dictionaries, dataclasses, other objects, named tuples or tuples,
some of them only in train mode (auxiliary classifiers). The reader is a forward hook of the network
itself, so that its modules, its state dict and the paths of its taps do not change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from krscale.errors import UserError, nearest
from krscale.knowledge.probes import are_bounded
from krscale.knowledge.taps import unwrapped
from krscale.models.foreign import located

_AGAIN, _ALONE = 1e-3, 0.05  # one image may use other kernels, which round differently in bf16
_COPIES, _DRAWS = 4, 3
_ROUNDING = 0.01  # rounding error of the sum of many probabilities in bf16
LOGITS = "logits"
"""The tensor of this name is used by default."""


class LogitsReader:
    """A forward hook that replaces a network's output by its logits.

    Args:
        key: Name or position of the logits among several outputs; empty takes `logits`, or the only
            tensor.
        where: The config table of the network, for error messages.
    """

    def __init__(self, key: str, where: str) -> None:
        self.key, self.where = key, where

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> Tensor:
        """Return the logits, `[B, K]`."""
        return without_positions(find_logits(output, self.key, self.where))


def read_logits(model: nn.Module, key: str, where: str) -> None:
    """Make a network return only its logits, in train and in eval mode."""
    model.register_forward_hook(LogitsReader(key, where))


def find_logits(output: Any, key: str = "", where: str = "model") -> Tensor:
    """Return the logits among what a network returned.

    A tensor is returned unchanged, whatever the key: some networks return a tuple only in train
    mode.

    Args:
        output: A tensor, or a mapping, dataclass, named tuple, tuple, list or other object that
            holds it.
        key: Name or position of the logits; empty takes `logits`, or the only tensor.
        where: The config table of the network, for error messages.

    Raises:
        UserError: If there is no such output, or the choice is ambiguous; the message lists the
            outputs.
    """
    if isinstance(output, Tensor):
        return output
    found = outputs_by_name(output)
    if found is None:
        raise UserError(
            f"{where}: the network returns {type(output).__name__}; allowed: a tensor of logits, "
            "or a dictionary, dataclass, other object, tuple or list that holds one."
        )
    if key:
        if key in found:
            return found[key]
        guess = nearest(key, found)
        hint = f" Did you mean {guess!r}?" if guess else ""
        raise UserError(
            f"{where}.output_key: the network returns no tensor {key!r}.{hint} It returns "
            f"{_described(found)}."
        )
    if LOGITS in found:
        return found[LOGITS]
    if len(found) == 1:
        return next(iter(found.values()))
    example = next(iter(found), "logits")
    raise UserError(
        f"{where}.output_key: the network returns {_described(found)}; say which are the logits, "
        f"e.g. output_key = {example!r}."
    )


def outputs_by_name(output: Any) -> dict[str, Tensor] | None:
    """Return the tensors of an output by name or position; None if its type is not supported."""
    if isinstance(output, Mapping):
        items = [(str(name), value) for name, value in output.items()]
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        items = [(f.name, getattr(output, f.name)) for f in dataclasses.fields(output)]
    elif isinstance(output, tuple) and hasattr(output, "_fields"):
        items = list(zip(output._fields, output, strict=True))
    elif isinstance(output, tuple | list):
        items = [(str(position), value) for position, value in enumerate(output)]
    elif hasattr(output, "__dict__") or hasattr(output, LOGITS):  # an object of another class
        # A property or a slot is not in `__dict__`.
        items = [*getattr(output, "__dict__", {}).items(), (LOGITS, getattr(output, LOGITS, None))]
    else:
        return None
    return {name: value for name, value in items if isinstance(value, Tensor)}


def without_positions(logits: Tensor) -> Tensor:
    """Return `[B, K, 1, 1]` as `[B, K]`; return anything else unchanged."""
    if logits.ndim > 2 and all(size == 1 for size in logits.shape[2:]):
        return logits.flatten(1)
    return logits


def are_probabilities(outputs: Tensor) -> bool:
    """Whether outputs `[B, K]` are class probabilities, as after a softmax, or percentages.

    Read as logits, probabilities would mean nearly equal classes, and percentages near certainty of
    one class, but nothing would fail.

    >>> logits = torch.tensor([[2.0, 0.0], [1.0, 3.0]])
    >>> [are_probabilities(x) for x in (logits, logits.softmax(dim=1), 100 * logits.softmax(dim=1))]
    [False, True, True]
    """
    wide = outputs.detach().float()
    sums = wide.sum(dim=1)
    return (
        wide.shape[1] > 1
        and bool((wide >= 0.0).all())
        and any(bool(((sums / whole - 1.0).abs() < _ROUNDING).all()) for whole in (1.0, 100.0))
    )


def refuse_probabilities(outputs: Tensor, where: str) -> None:
    """Refuse a network that returns probabilities instead of logits, see `are_probabilities`.

    Raises:
        UserError: If it is refused; the message says what to do.
    """
    if are_probabilities(outputs):
        raise UserError(
            f"{where}: in eval mode the network gives probabilities (each image's sum to 1, or to "
            "100), and logits are needed: leave its softmax out, or return their logarithm."
        )


def refuse_bounded(
    network: nn.Module, read: Callable[[Any], Tensor], images: Tensor, where: str
) -> None:
    """Refuse a network to train if its outputs are between 0 and 1 whatever its weights are.

    This is the case after a sigmoid. A new network's outputs would not show it, so weights are
    drawn with which actual logits would be far outside this range.

    Args:
        network: The network in eval mode; not modified.
        read: Returns the logits within its output.
        images: A few images.
        where: The role of the network, for the error message.

    Raises:
        UserError: If it is refused; the message says what to do.
    """
    generator = torch.Generator().manual_seed(0)
    for _ in range(_DRAWS):
        drawn = {}
        try:  # weights sharded over workers cannot be replaced by whole ones
            for name, weight in network.named_parameters():
                if weight.is_floating_point():
                    both = torch.randn((2, *weight.shape), generator=generator, device="cpu")
                    first, second = both.to(weight)
                    drawn[name] = 3.0 * first * weight.detach() + 0.1 * second
            # By itself, torch would give a layer with several names its weights under each of them,
            # and leave drawn ones in it.
            outputs = read(functional_call(network, drawn, (images,), tie_weights=False))
        except Exception:  # noqa: BLE001 - it need not run with any weights; so nothing is shown
            return
        if not are_bounded(outputs):
            return
    raise UserError(
        f"{where}: all its outputs lie between 0 and 1 whatever its weights are, as after a "
        "sigmoid or a softmax, and logits are needed: leave that out."
    )


def check_steady(run: Callable[[Tensor], Tensor], images: Tensor, where: str) -> None:
    """Refuse a network in eval mode whose logits for an image do not depend on the image alone.

    With such a network, neither what it teaches nor what is measured would match later outputs.

    Args:
        run: Returns the network's logits, `[B, K]`.
        images: A few images.
        where: The role of the network, for error messages.

    Raises:
        UserError: If the logits differ when the network is run again, or for a single image; or if
            the network changes the images.
    """
    with torch.random.fork_rng(devices=[]):
        several = images.repeat(_COPIES, 1, 1, 1)  # dropout may not change all images
        given = several.clone()
        first = run(several)
        if not torch.equal(given.nan_to_num(), several.nan_to_num()):
            raise UserError(
                f"{where}: the network changes the images that it is given, in place, and whoever "
                "reads them next reads others. Let it make new ones: x - mean, not x.sub_(mean)."
            )
        again = run(several)
        try:
            alone = torch.cat([run(image[None]) for image in images])
        except Exception as error:
            raise UserError(
                f"{where}: the network does not run on one image by itself: {located(error)}."
            ) from error
    if differ(first, again):
        raise UserError(
            f"{where}: in eval mode the network gives the same images other outputs when it is "
            "run again: dropout that is always on (F.dropout without training=self.training), "
            "noise, or something that it counts or records, as observers of quantisation-aware "
            "training do until they are switched off."
        )
    first = first[: len(images)]
    if first.shape != alone.shape:
        shape = list(run(images[:1]).shape)
        raise UserError(
            f"{where}: for one image by itself the network gives {shape}, and not "
            f"{[1, *first.shape[1:]]}: squeeze() without a dimension, for example."
        )
    if differ(first, alone, _ALONE):
        raise UserError(
            f"{where}: in eval mode the network gives an image other outputs by itself than among "
            "others: batch norm without running statistics (track_running_stats=False), or "
            "another mean over the batch."
        )


def differ(one: Tensor, other: Tensor, share: float = _AGAIN) -> bool:
    """Whether outputs differ by more than a share of the largest; False if not finite."""
    return float((one - other).abs().max()) > share * float(one.abs().max())


def refuse_programs(network: nn.Module, where: str) -> None:
    """Refuse programs made of a network, which have no blocks, or none that accept hooks.

    Raises:
        UserError: If it is refused; the message says what to give.
    """
    exported = any(
        isinstance(module, torch.fx.GraphModule) and "eval" in vars(module)  # made to refuse it
        for module in network.modules()
    )
    if exported or isinstance(network, torch.jit.ScriptModule):
        raise UserError(
            f"{where}: this is a program made of a network (TorchScript, torch.export), whose "
            "blocks cannot be read. Give the torch.nn.Module itself, with the program's weights."
        )


def unwrap_all(model: nn.Module) -> nn.Module:
    """Remove torch.compile and data-parallel wrappers from a network and its submodules.

    The student is compiled if `train.compile` is set; the teacher runs once and would not benefit.
    """
    model = unwrapped(model)
    for parent in list(model.modules()):
        parent._compiled_call_impl = None  # set by `module.compile()`
        for name, child in list(parent._modules.items()):
            if child is not None and (bare := unwrapped(child)) is not child:
                parent._modules[name] = bare
    return model


def _described(found: Mapping[str, Tensor]) -> str:
    if not found:
        return "no tensor at all"
    return ", ".join(f"{name!r} {list(value.shape)}" for name, value in found.items())
