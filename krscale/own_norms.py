"""Batch norms of custom classes, and the modules that a norm over several workers must also run."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from krscale.errors import UserError

_PLAIN = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
_SHAPES_OF_OTHERS = ((4, 2, 3),)
_SHAPES = {
    nn.BatchNorm1d: ((4,), (4, 3)),
    nn.BatchNorm2d: _SHAPES_OF_OTHERS,
    nn.BatchNorm3d: ((4, 2, 3, 2),),
}
"""Shapes of test inputs, without the channels; the first that a norm accepts is used."""
AnyModule = TypeVar("AnyModule", bound=nn.Module)


def refuse_own_norms(
    model: nn.Module, where: str, known: type[nn.Module] = nn.SyncBatchNorm
) -> None:
    """Refuse batch norms that cannot be replaced by a norm over several workers.

    With several workers, each batch norm is replaced by one over the samples of all of them,
    followed by its own submodules (`modules_after`). A norm that computes anything else would then
    be another network.

    Args:
        model: The network, possibly on meta tensors; it is not changed.
        where: The role of the network, for the error message.
        known: A class whose norms are over the samples of all workers already.

    Raises:
        UserError: With the first such norm and its class.

    Example:
        >>> refuse_own_norms(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), "student")
    """
    for name, module in model.named_modules():
        is_norm = isinstance(module, _BatchNorm) and not isinstance(module, known)
        if is_norm and modules_after(module) is None:
            own = (
                "has had its forward replaced"
                if "forward" in vars(module)
                else f"is of a class of its own, {type(module).__name__}, and computes more than "
                "torch's and its own modules after that"
            )
            raise UserError(
                f"{where}: batch norm {name!r} {own}. Over several workers that would be left out: "
                "train on one (train.num_workers = 1, train.max_workers = 0; of a teacher "
                "teacher.num_workers = 1), or use nn.BatchNorm modules."
            )


@torch.no_grad()
def modules_after(norm: _BatchNorm) -> tuple[str, ...] | None:
    """Return the names of a norm's submodules that it runs on the output of torch's norm, in order.

    timm's `BatchNormAct2d`, for example, has a dropout and an activation. They are determined by
    running copies.

    Returns:
        Empty if the norm computes the same as torch's; None if it computes anything else,
        including its running statistics.

    Example:
        >>> modules_after(nn.BatchNorm2d(2))
        ()
    """
    if "forward" in vars(norm):  # which may be bound to this object, and so would run it
        return None
    if type(norm).forward in _PLAIN:
        return ()
    own = tuple(name for name, _ in norm.named_children())
    return next((names for names in dict.fromkeys(((), own)) if _is_plain_and(norm, names)), None)


def _is_plain_and(norm: _BatchNorm, names: tuple[str, ...]) -> bool:
    """Return whether a norm gives the output of torch's norm followed by its named submodules."""
    values = _values_for(norm)
    return values is not None and all(
        _gives_the_same(norm, names, values, training) for training in (False, True)
    )


def _values_for(norm: _BatchNorm) -> Tensor | None:
    """Return a test input from -1 to 1; None if the norm accepts none."""
    shapes = next((s for kind, s in _SHAPES.items() if isinstance(norm, kind)), _SHAPES_OF_OTHERS)
    for samples, *others in shapes:
        size = samples * norm.num_features * torch.Size(others).numel()
        values = torch.linspace(-1.0, 1.0, size).reshape(samples, norm.num_features, *others)
        with suppress(Exception), torch.random.fork_rng(devices=[]):  # a module of somebody's own
            _filled(norm).train(False).forward(values)
            return values
    return None


def _gives_the_same(
    norm: _BatchNorm, names: tuple[str, ...], values: Tensor, training: bool
) -> bool:
    """Return whether output and running statistics equal torch's norm with modules after it."""
    with suppress(Exception), torch.random.fork_rng(devices=[]):
        own, parts = _filled(norm).train(training), _filled(norm).train(training)
        torch.manual_seed(0)
        expected = _BatchNorm.forward(parts, values)
        for name in names:
            expected = parts.get_submodule(name)(expected)
        torch.manual_seed(0)
        pairs = [
            (own.forward(values), expected),
            (own.running_mean, parts.running_mean),
            (own.running_var, parts.running_var),
        ]
        return all(_are_alike(found, wanted) for found, wanted in pairs)
    return False


def _are_alike(found: Tensor | None, wanted: Tensor | None) -> bool:
    if found is None or wanted is None:
        return found is wanted
    return torch.allclose(found, wanted, atol=1e-5)


def _filled(norm: _BatchNorm) -> _BatchNorm:
    """Return a copy on the CPU, in fp32, whose output ranges from about -8 to 8.

    With this range, any activation after it changes the output.
    """
    filled = _copied(norm)
    if filled.weight is not None:
        filled.weight.fill_(5.0)
    return filled


def _copied(module: AnyModule) -> AnyModule:
    """Return a copy with other tensors and without hooks.

    `copy.deepcopy` would raise an error if a module keeps a lock, or an output with its gradient.
    """
    copied = module.__new__(type(module))
    copied.__dict__.update(module.__dict__)
    copied._forward_hooks, copied._forward_pre_hooks = OrderedDict(), OrderedDict()
    copied._modules = {n: child and _copied(child) for n, child in module._modules.items()}
    copied._parameters = {
        n: None if old is None else nn.Parameter(_of_shape(old), old.requires_grad)
        for n, old in module._parameters.items()
    }
    copied._buffers = {
        n: None if old is None else _of_shape(old) for n, old in module._buffers.items()
    }
    return copied


def _of_shape(old: Tensor) -> Tensor:
    dtype = torch.float32 if old.is_floating_point() else old.dtype
    return torch.empty(old.shape, dtype=dtype).fill_(0.25)
