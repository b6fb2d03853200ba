"""Batch norms of a class of their own: what a norm over several workers has to compute as well."""

from __future__ import annotations

import copy
from contextlib import suppress

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from krscale.errors import UserError

_PLAIN = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
_SHAPES = {nn.BatchNorm1d: (4,), nn.BatchNorm2d: (4, 2, 3), nn.BatchNorm3d: (4, 2, 3, 2)}
"""Of what is normalised, without the channels."""


def refuse_own_norms(
    model: nn.Module, where: str, known: type[nn.Module] = nn.SyncBatchNorm
) -> None:
    """Refuse batch norms that no norm over several workers can stand for.

    There, one over the samples of all workers takes the place of each, followed by the modules that
    it has itself (`modules_after`). What computes anything else would be another network.

    Args:
        model: May be on meta tensors; nothing in it changes.
        where: What the network is, for the message.
        known: A class that is over the samples of all workers already.

    Raises:
        UserError: Naming the first of them, and its class.

    Example:
        >>> refuse_own_norms(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), "student")
    """
    for name, module in model.named_modules():
        is_norm = isinstance(module, _BatchNorm) and not isinstance(module, known)
        if is_norm and modules_after(module) is None:
            raise UserError(
                f"{where}: batch norm {name!r} is of a class of its own, {type(module).__name__}, "
                "and computes more than torch's and its own modules after that. Over several "
                "workers that would be left out: train on one (train.num_workers = 1, "
                "train.max_workers = 0; of a teacher teacher.num_workers = 1), or use "
                "nn.BatchNorm modules."
            )


@torch.no_grad()
def modules_after(norm: _BatchNorm) -> tuple[str, ...] | None:
    """Return the names of a norm's own modules that it runs, in their order, on what torch's gives.

    timm's `BatchNormAct2d` has a dropout and an activation in it. Found by running copies.

    Returns:
        Nothing where it computes what torch's does; None where it computes anything else.

    Example:
        >>> modules_after(nn.BatchNorm2d(2))
        ()
    """
    if type(norm).forward in _PLAIN:
        return ()
    own = tuple(name for name, _ in norm.named_children())
    return next((names for names in dict.fromkeys(((), own)) if _is_plain_and(norm, names)), None)


def _is_plain_and(norm: _BatchNorm, names: tuple[str, ...]) -> bool:
    """Whether a norm gives what torch's would with its weights, and modules of it after that."""
    spatial = next((shape for kind, shape in _SHAPES.items() if isinstance(norm, kind)), (4, 2, 3))
    samples, *others = spatial
    values = torch.linspace(-1.0, 1.0, samples * norm.num_features * torch.Size(others).numel())
    values = values.reshape(samples, norm.num_features, *others)
    for training in (False, True):
        own, parts = _filled(norm).train(training), _filled(norm).train(training)
        is_same = False
        with suppress(Exception), torch.random.fork_rng(devices=[]):  # a module of somebody's own
            torch.manual_seed(0)
            expected = _BatchNorm.forward(parts, values)
            for name in names:
                expected = parts.get_submodule(name)(expected)
            torch.manual_seed(0)
            is_same = torch.allclose(own(values), expected, atol=1e-5)
        if not is_same:
            return False
    return True


def _filled(norm: _BatchNorm) -> _BatchNorm:
    """Return a copy on the CPU, in fp32, that gives numbers from about -8 to 8.

    So an activation after it makes a difference, whichever it is.
    """
    filled = copy.deepcopy(norm).to_empty(device="cpu").float()
    for tensor in (*filled.parameters(), *filled.buffers()):
        tensor.fill_(0.25)
    if filled.affine:
        filled.weight.fill_(5.0)
    return filled
