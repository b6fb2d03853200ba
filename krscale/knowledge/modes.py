"""Running a network to look at it: afterwards its modes and buffers are what they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Put every module back into its own mode, and every buffer to its values.

    Modes are set by `train`, as some networks change their weights there: LoRA layers add what they
    have learned for `eval()`, and take it off again. Buffers change without training, too:
    observers of quantisation-aware training record what passes through them. Weights that a hook
    computes (weight_norm of older torch, pruning) are plain attributes.

    Example:
        >>> network = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout().eval())
        >>> with left_as_it_was(network):
        ...     _ = network.eval()
        >>> network.training, network[0].training, network[1].training
        (True, True, False)
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module, _ in modes
        for name, buffer in module._buffers.items()
        if buffer is not None and _has_values(buffer)
    ]
    computed = [
        (module, name, value)
        for module, _ in modes
        for name, value in vars(module).items()
        if isinstance(value, Tensor)
    ]
    try:
        yield
    finally:
        for module, mode in modes:  # a module comes before its parts, whose modes may differ
            if module.training != mode:
                module.train(mode)
        for module, mode in modes:  # some set no flag in `train`, or others than those of its parts
            module.training = mode
        for module, name, value in computed:
            vars(module)[name] = value
        with torch.no_grad():
            for module, name, buffer, values in buffers:
                module._buffers[name] = buffer
                if buffer.shape != values.shape:
                    buffer.resize_(values.shape)
                if not torch.equal(buffer, values):
                    buffer.copy_(values)


def _has_values(tensor: Tensor) -> bool:
    return not tensor.is_meta and not is_lazy(tensor)
