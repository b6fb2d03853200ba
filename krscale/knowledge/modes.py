"""Running a network to look at it: afterwards its modes and buffers are what they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_SMALL = 1_000_000
"""Values up to which a buffer is compared as well: what is written to `.data` is not counted."""


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
        _Kept(module, name, buffer, buffer.clone(), num_writes(buffer))
        for module, _ in modes
        for name, buffer in module._buffers.items()
        if buffer is not None and _can_be_kept(buffer)
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
                with suppress(Exception):  # of networks that are not to be trained
                    module.train(mode)
        for module, mode in modes:  # some set no flag in `train`, or others than those of its parts
            module.training = mode
        for module, name, value in computed:
            vars(module)[name] = value
        for kept in buffers:
            kept.put_back()


@dataclass(frozen=True)
class _Kept:
    """A buffer of a module, its values, and how often it had been written to."""

    module: nn.Module
    name: str
    buffer: Tensor
    values: Tensor
    num_writes: int

    @torch.no_grad()
    def put_back(self) -> None:
        self.module._buffers[self.name] = self.buffer
        counted = self.num_writes >= 0 and num_writes(self.buffer) == self.num_writes
        if counted and (self.buffer.numel() > _SMALL or _same(self.buffer, self.values)):
            return
        try:
            if self.buffer.shape != self.values.shape:
                self.buffer.resize_(self.values.shape)
            self.buffer.copy_(self.values)
        except RuntimeError:  # of inference mode, or one whose values share their memory
            self.module._buffers[self.name] = self.values


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(
        ((one == other) | (one != one) & (other != other)).all()
    )


def num_writes(tensor: Tensor) -> int:
    """Return how often a tensor was written to; -1 where torch does not count it."""
    return -1 if tensor.is_inference() else tensor._version


def _can_be_kept(tensor: Tensor) -> bool:
    if is_lazy(tensor) or tensor.is_meta or tensor.is_nested:
        return False
    return tensor.layout == torch.strided
