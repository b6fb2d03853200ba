"""Rows of the store: what the teacher says of one view of one sample, in few bytes.

A row holds, for every tap, a distribution over the classes at the store's temperature: either all
`K` probabilities, or the `k` largest with their classes and the mass that remains for all others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from krscale.errors import UserError

MAX_CLASSES = 2**16
# Up to this many classes are all kept when nobody says how many: 24 bytes a tap, and exact.
FEW_CLASSES = 12
# Half of the smallest fp16: a probability that was stored as 0 is somewhere below it.
_SMALLEST = 2.0**-25


@dataclass(frozen=True)
class Layout:
    """What a row holds.

    Attributes:
        num_taps: `D`.
        num_classes: `K`.
        top_k: Classes kept per tap; `K` keeps all of them, in order and without their numbers.
        temperature: At which the probabilities were taken.
    """

    num_taps: int
    num_classes: int
    top_k: int
    temperature: float

    @property
    def is_dense(self) -> bool:
        """Whether every class is kept."""
        return self.top_k == self.num_classes

    @property
    def width(self) -> int:
        """Probabilities per tap: those kept and, unless all are, the remaining mass."""
        return self.num_classes if self.is_dense else self.top_k + 1

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one view of one sample: all taps, and the check sum of its pixels."""
        classes = 0 if self.is_dense else self.top_k
        return 2 * self.num_taps * (self.width + classes) + 4


class Rows(NamedTuple):
    """Encoded rows.

    Attributes:
        probabilities: `[B, D, width]` fp16.
        classes: `[B, D, top_k]`, the bits of uint16 as int16 (torch computes little in uint16);
            None when every class is kept.
    """

    probabilities: Tensor
    classes: Tensor | None

    def to(self, device: torch.device) -> Rows:
        """Copy to a device; from pinned memory without waiting."""
        classes = self.classes if self.classes is None else _move(self.classes, device)
        return Rows(_move(self.probabilities, device), classes)

    def pin_memory(self) -> Rows:
        """Copy to page-locked memory, from which a GPU reads without waiting."""
        classes = self.classes if self.classes is None else self.classes.pin_memory()
        return Rows(self.probabilities.pin_memory(), classes)


def check_top_k(top_k: int, num_classes: int) -> None:
    """Refuse a `top_k` that a store of these classes cannot have.

    Raises:
        UserError: If it exceeds the classes, or their numbers do not fit 16 bits.
    """
    if num_classes > MAX_CLASSES:
        raise UserError(f"a store can number {MAX_CLASSES} classes; the data has {num_classes}.")
    if top_k > num_classes:
        raise UserError(
            f"store.top_k: {top_k} is more than the {num_classes} classes. "
            f"Allowed: 1 to {num_classes}, or 0 to choose by store.max_error."
        )


def cheapest_top_k(top_k: int, num_classes: int) -> int:
    """Return `top_k`, or `num_classes` where keeping every class takes no more room.

    A kept class costs 4 bytes (number and probability) and the remaining mass 2; without numbers,
    every class costs 2.
    """
    return num_classes if 4 * top_k + 2 >= 2 * num_classes else top_k


def encode(tap_logits: Tensor, layout: Layout) -> tuple[Rows, Tensor]:
    """Encode what the teacher says.

    Args:
        tap_logits: `[B, D, K]` fp32.
        layout: What to keep.

    Returns:
        The rows, and what was lost: the total variation between a tap's distribution and the one
        that keeps the top k and spreads the rest evenly, `[B, D]` fp32.
    """
    probabilities = torch.softmax(tap_logits / layout.temperature, dim=-1)
    if layout.is_dense:
        return Rows(probabilities.half(), None), probabilities.new_zeros(probabilities.shape[:2])
    kept, classes = probabilities.topk(layout.top_k, dim=-1)
    rest = (1.0 - kept.sum(dim=-1, keepdim=True)).clamp_min(0.0)
    level = rest / (layout.num_classes - layout.top_k)
    # What lies above the level, less the kept classes, which are all exact: what the tail loses
    # above it equals what it gains below, so this is the whole variation.
    above = (probabilities - level).clamp_min(0.0).sum(dim=-1)
    lost = (above - (kept - level).clamp_min(0.0).sum(dim=-1)).clamp_min(0.0)
    return Rows(torch.cat([kept, rest], dim=-1).half(), classes.to(torch.int16)), lost


def decode(rows: Rows, layout: Layout) -> Tensor:
    """Return `tap_logits` `[B, D, K]` fp32: temperature * log of the stored probabilities.

    They are logits up to a constant per tap, so that `softmax(tap_logits / t)` is the teacher's
    distribution at any temperature `t`.
    """
    logits = rows.probabilities.float()
    if rows.classes is None:
        return logits.clamp_min_(_SMALLEST).log_().mul_(layout.temperature)
    others = layout.num_classes - layout.top_k
    logits[..., -1:] /= others
    logits.clamp_min_(_SMALLEST).log_().mul_(layout.temperature)
    shape = (*logits.shape[:-1], layout.num_classes)
    tap_logits = logits[..., -1:].expand(shape).contiguous()
    return tap_logits.scatter_(-1, class_numbers(rows.classes), logits[..., :-1])


def class_numbers(classes: Tensor) -> Tensor:
    """Return the class numbers int64 that `Rows.classes` holds as the bits of uint16."""
    return classes.long().bitwise_and_(MAX_CLASSES - 1)


def truncation_error(sorted_probabilities: Tensor, top_k: int) -> Tensor:
    """Return the mean total variation of keeping `top_k` classes, per tap.

    Args:
        sorted_probabilities: `[N, D, K]`, descending in the last dimension.
        top_k: Classes kept, fewer than `K`.

    Returns:
        `[D]` fp32.
    """
    tail = sorted_probabilities[..., top_k:]
    level = tail.mean(dim=-1, keepdim=True)
    return (tail - level).clamp_min(0.0).sum(dim=-1).mean(dim=0)


def choose_top_k(sorted_probabilities: Tensor, max_error: float) -> int:
    """Return the fewest classes to keep so that no tap loses more than `max_error`.

    Args:
        sorted_probabilities: `[N, D, K]` of sampled rows, descending in the last dimension.
        max_error: Largest mean total variation of any tap.

    Returns:
        `top_k`; `K` when fewer would take as much room, or the classes are few anyway.
    """
    num_classes = sorted_probabilities.shape[-1]
    if num_classes <= FEW_CLASSES:
        return num_classes
    low, high = 1, num_classes
    # The tail only becomes evener as its largest entries are kept, so the error falls with k.
    while low < high:
        middle = (low + high) // 2
        if float(truncation_error(sorted_probabilities, middle).max()) <= max_error:
            high = middle
        else:
            low = middle + 1
    return cheapest_top_k(low, num_classes)


def pixel_sums(images: Tensor) -> Tensor:
    """Return a 32-bit check sum of each image, `[B]` int64, the same on every machine.

    Args:
        images: `[B, C, H, W]` uint8.
    """
    pixels = images.flatten(1).long()
    weights = torch.arange(1, pixels.shape[1] + 1, device=images.device)
    # splitmix64 (Steele et al., 2014) makes the weights unrelated, so that moved pixels show.
    weights = weights * 0x1E3779B97F4A7C15
    weights = (weights ^ (weights >> 30)) * 0x3F58476D1CE4E5B9
    weights = (weights ^ (weights >> 27)) * 0x14D049BB133111EB
    sums = (pixels * (weights | 1)).sum(dim=1)
    return (sums ^ (sums >> 32)) & 0xFFFFFFFF


def _move(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)
