"""Running a network for inspection, and restoring its modes and buffers afterwards."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

AnyModule = TypeVar("AnyModule", bound=nn.Module)
_SMALL = 1_000_000
"""Maximum size of buffers whose values are compared: writes to `.data` are not counted by torch."""


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Restore the mode of every module and the values of every buffer after the block.

    Modes are restored by `train`, since some networks change their weights there: LoRA layers merge
    what they have learned for `eval()`, and remove it afterwards. Buffers can change without
    training, too: observers of quantisation-aware training record the values that pass through
    them. Weights that a hook computes (weight_norm of older torch versions, pruning) are plain
    attributes; they are also restored.

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
                with suppress(Exception):  # some networks refuse to be trained
                    module.train(mode)
        for module, mode in modes:  # `train` may set no flag, or not those of all parts
            module.training = mode
        for module, name, value in computed:
            vars(module)[name] = value
        for kept in buffers:
            kept.put_back()


def copy_of(network: AnyModule) -> AnyModule:
    """Return a deep copy of a network, also if its modules keep tensors with a gradient.

    torch refuses to copy such tensors: weights that a hook computes (weight_norm of older torch
    versions, pruning), and outputs that a module keeps. They are copied without their gradient.

    Example:
        >>> network = nn.Linear(1, 1)
        >>> network.last = network(torch.ones(1))
        >>> torch.equal(copy_of(network).last, network.last)
        True
    """
    kept = [
        value
        for module in network.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    return copy.deepcopy(network, {id(value): value.detach().clone() for value in kept})


@dataclass(frozen=True)
class _Kept:
    """A buffer of a module, its values, and its number of writes at that time."""

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
        except RuntimeError:  # an inference tensor, or one whose values share memory
            self.module._buffers[self.name] = self.values


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(
        ((one == other) | (one != one) & (other != other)).all()
    )


def num_writes(tensor: Tensor) -> int:
    """Return how often a tensor was written to; -1 if torch does not count it."""
    return -1 if tensor.is_inference() else tensor._version


def memory_mark(tensor: Tensor) -> int:
    """Return a number that is another one after a write into a tensor or a view of its memory.

    It is torch's number of writes, the same for all views. In `torch.inference_mode`, where writes
    are not counted, it is a checksum of all values in the memory.

    Example:
        >>> with torch.inference_mode():
        ...     whole = torch.zeros(2, 3)
        ...     before = memory_mark(whole)
        ...     same = memory_mark(whole.flatten()) == before
        ...     _ = whole.add_(1.0)
        ...     (same, memory_mark(whole) == before)
        (True, False)
    """
    if not tensor.is_inference():
        return tensor._version
    if tensor.is_meta or tensor.layout != torch.strided:
        return 0
    whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
    return zlib.crc32(whole.cpu().numpy().tobytes())


def share_memory(one: Tensor, other: Tensor) -> bool:
    """Return whether one tensor is the other, or a view of the same memory.

    Example:
        >>> whole = torch.zeros(2, 3)
        >>> share_memory(whole, whole.flatten()), share_memory(whole, whole.clone())
        (True, False)
    """
    if one is other:
        return True
    if one.layout != torch.strided or other.layout != torch.strided:
        return False  # sparse tensors have no storage
    # Tensors on meta have no addresses, but storages.
    return bool(one.untyped_storage()._cdata == other.untyped_storage()._cdata)


def _can_be_kept(tensor: Tensor) -> bool:
    if is_lazy(tensor) or tensor.is_meta or tensor.is_nested:
        return False
    return tensor.layout == torch.strided
