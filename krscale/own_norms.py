"""Batch norms of a class of their own: what several workers would leave out of a network."""

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
    """Refuse batch norms that compute more than torch's, for a training on several workers.

    There, one over the samples of all workers takes the place of each. That of timm's
    `BatchNormAct2d`, which has the activation in it, would have none: another network is trained.

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
        if is_norm and _computes_more(module):
            raise UserError(
                f"{where}: batch norm {name!r} is of a class of its own, {type(module).__name__}, "
                "and computes more than torch's. Over several workers that would be left out: "
                "train on one (train.num_workers = 1, train.max_workers = 0; of a teacher "
                "teacher.num_workers = 1), or use nn.BatchNorm modules."
            )


@torch.no_grad()
def _computes_more(norm: _BatchNorm) -> bool:
    """Whether a norm gives something else than torch's would with its weights and statistics."""
    if type(norm).forward in _PLAIN:
        return False
    spatial = next((shape for kind, shape in _SHAPES.items() if isinstance(norm, kind)), (4, 2, 3))
    samples, *others = spatial
    values = torch.linspace(-1.0, 1.0, samples * norm.num_features * torch.Size(others).numel())
    values = values.reshape(samples, norm.num_features, *others)
    with torch.random.fork_rng(devices=[]):
        for training in (False, True):
            own, plain = _filled(norm).train(training), _filled(norm).train(training)
            is_same = False
            with suppress(Exception):  # whatever a module of somebody's own raises
                expected = _BatchNorm.forward(plain, values)
                is_same = torch.allclose(own(values), expected, atol=1e-5)
            if not is_same:
                return True
    return False


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
