"""Rows of the store: encoding the teacher's outputs for a view into few bytes, and decoding."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from krscale.store.layout import MAX_CLASSES, ROUNDED_BITS, Layout, cheapest_top_k

# Half of the smallest fp16: a probability that was stored as 0 is below it.
_SMALLEST = 2.0**-25
_LARGEST = 65504.0  # largest fp16
# Changes due to fp16 and another device's arithmetic (TF32 convolutions: 1 %).
_ABSOLUTE, _RELATIVE = 1e-3, 0.02


class Rows(NamedTuple):
    """Encoded rows, as they are stored in a shard.

    Attributes:
        values: `[B, D * num_values]` fp16; or `[B, num_words]`, the bits of uint16 as int16.
        codes: The kept classes, `[B, D * top_k]`, the bits of uint16 as int16; or rounded logits,
            `[B, num_words]`, the bits of uint32 as int32 (torch has few operations on unsigned
            types); or None if every class is kept exactly, and for features and positions.
    """

    values: Tensor
    codes: Tensor | None

    def to(self, device: torch.device) -> Rows:
        """Copy to a device; copies from page-locked memory do not wait."""
        codes = self.codes if self.codes is None else self.codes.to(device, non_blocking=True)
        return Rows(self.values.to(device, non_blocking=True), codes)

    def pin_memory(self) -> Rows:
        """Copy to page-locked memory, from which a GPU copies without waiting."""
        codes = self.codes if self.codes is None else self.codes.pin_memory()
        return Rows(self.values.pin_memory(), codes)


def encode(tap_logits: Tensor, layout: Layout) -> Rows:
    """Encode the teacher's logits, `[B, D, K]` fp32.

    Example:
        >>> logits = torch.zeros(2, 3, 10)  # two views, three taps, ten classes
        >>> rows = encode(logits, Layout(3, 10, top_k=2, temperature=1.0))
        >>> rows.values.shape, rows.codes.shape  # two probabilities and the rest; two classes
        (torch.Size([2, 9]), torch.Size([2, 6]))
    """
    if layout.is_rounded:
        return _round(tap_logits, layout)
    probabilities = torch.softmax(tap_logits / layout.temperature, dim=-1)
    if not layout.is_truncated:
        return Rows(probabilities.half().flatten(1), None)
    kept, classes = probabilities.topk(layout.top_k, dim=-1)
    rest = (1.0 - kept.sum(dim=-1, keepdim=True)).clamp_min(0.0)
    values = torch.cat([kept, rest], dim=-1).half()
    return Rows(values.flatten(1), classes.to(torch.int16).flatten(1))


def decode(rows: Rows, layout: Layout) -> Tensor:
    """Return `tap_logits` `[B, D, K]` fp32: logits up to a constant per tap.

    `softmax(tap_logits / t)` is the teacher's distribution at any temperature `t`, up to the
    encoding error.

    Example:
        >>> logits = torch.tensor([[[0.5, 0.25, 0.2, 0.05]]]).log()
        >>> layout = Layout(1, 4, top_k=2, temperature=1.0)  # the rest is spread evenly
        >>> decode(encode(logits, layout), layout).softmax(dim=-1).round(decimals=3)
        tensor([[[0.5000, 0.2500, 0.1250, 0.1250]]])
    """
    values = _per_tap(rows.values, layout).float()
    if layout.is_rounded:
        return _levels(rows, layout).mul_(values / (2**layout.bits - 1))
    if not layout.is_truncated:
        return values.clamp_min_(_SMALLEST).log_().mul_(layout.temperature)
    values[..., -1:] /= layout.num_classes - layout.top_k
    values.clamp_min_(_SMALLEST).log_().mul_(layout.temperature)
    shape = (*values.shape[:-1], layout.num_classes)
    tap_logits = values[..., -1:].expand(shape).contiguous()
    return tap_logits.scatter_(-1, _classes(rows, layout), values[..., :-1])


def variation(tap_logits: Tensor, rows: Rows, layout: Layout) -> Tensor:
    """Return the encoding error: the total variation at the store's temperature, `[B, D]`.

    Example:
        >>> logits = torch.tensor([[[0.5, 0.25, 0.2, 0.05]]]).log()
        >>> layout = Layout(1, 4, top_k=2, temperature=1.0)
        >>> variation(logits, encode(logits, layout), layout).round(decimals=3)  # half of 2 * 0.075
        tensor([[0.0750]])
    """
    exact, kept = (
        torch.softmax(logits / layout.temperature, dim=-1)
        for logits in (tap_logits, decode(rows, layout))
    )
    return 0.5 * (exact - kept).abs().sum(dim=-1)


def choose_layout(tap_logits: Tensor, temperature: float, max_error: float) -> Layout:
    """Return the smallest layout in which no tap has an error above `max_error`.

    Args:
        tap_logits: `[N, D, K]` fp32 of sampled rows.
        temperature: Temperature at which the error is measured.
        max_error: Largest mean total variation of any tap.

    Example:
        >>> even = torch.linspace(0.0, 3.0, 100).view(1, 1, 100)
        >>> sure = 20.0 * torch.eye(100).view(100, 1, 100)
        >>> layouts = [choose_layout(logits, 1.0, 0.04) for logits in (even, sure)]
        >>> [(layout.top_k, layout.bits) for layout in layouts]  # all in 4 bits; the first alone
        [(100, 4), (1, 16)]
    """
    _, num_taps, num_classes = tap_logits.shape

    def error(layout: Layout) -> float:
        return float(mean_error(tap_logits, layout).max())

    def truncated(top_k: int) -> Layout:
        return Layout(num_taps, num_classes, top_k, temperature)

    low, high = 1, num_classes
    # With larger k, the largest entries leave the tail, which becomes more even: the error falls.
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if error(truncated(middle)) <= max_error else (middle + 1, high)
    chosen = truncated(cheapest_top_k(low, num_classes))
    for bits in ROUNDED_BITS:
        rounded = Layout(num_taps, num_classes, num_classes, temperature, bits)
        if rounded.bytes_per_row < chosen.bytes_per_row and error(rounded) <= max_error:
            return rounded  # more bits take more space
    return chosen


def mean_error(tap_logits: Tensor, layout: Layout) -> Tensor:
    """Return the mean error of encoding `[N, D, K]` at each tap, `[D]` fp32."""
    return variation(tap_logits, encode(tap_logits, layout), layout).mean(dim=0)


def deviations(rows: Rows, tap_logits: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Compare stored rows with the teacher's outputs now.

    Args:
        rows: The stored rows.
        tap_logits: `[B, D, K]`, the teacher's logits for the same views.
        layout: Layout of the rows.

    Returns:
        The differences of all stored numbers (probabilities, or log-probabilities up to a
        constant), and how large rounding and another device's arithmetic may make each, `[B, ...]`
        both. Which classes were kept is not compared, as chance decides between equally probable
        ones.
    """
    now = tap_logits / layout.temperature
    if layout.is_rounded:
        then = decode(rows, layout) / layout.temperature
        steps = _per_tap(rows.values, layout).float() / (2**layout.bits - 1) / layout.temperature
        then, now = (x - x.amax(dim=-1, keepdim=True) for x in (then, now))
        now = now.clamp_min(-_LARGEST / layout.temperature)  # larger spans are cut off
        return (now - then).abs(), 0.5 * steps + _RELATIVE + _ABSOLUTE * then.abs()
    now = torch.softmax(now, dim=-1)
    if layout.is_truncated:
        kept = now.gather(-1, _classes(rows, layout))
        now = torch.cat([kept, 1.0 - kept.sum(dim=-1, keepdim=True)], dim=-1)
    then = _per_tap(rows.values, layout).float()
    return (now - then).abs(), _ABSOLUTE + _RELATIVE * then


def pixel_sums(images: Tensor) -> Tensor:
    """Return a 32-bit check sum of each image, `[B]` int64, the same on every machine.

    Args:
        images: `[B, C, H, W]` uint8.

    Example:
        >>> images = torch.tensor([[0, 1], [1, 0], [0, 1]], dtype=torch.uint8).view(3, 1, 1, 2)
        >>> first, moved, same = pixel_sums(images).tolist()
        >>> first == moved, first == same
        (False, True)
    """
    pixels = images.flatten(1).long()
    weights = torch.arange(1, pixels.shape[1] + 1, device=images.device)
    # splitmix64 (Steele et al., 2014) makes the weights unrelated, so that moving pixels changes
    # the sum.
    weights = weights * 0x1E3779B97F4A7C15
    weights = (weights ^ (weights >> 30)) * 0x3F58476D1CE4E5B9
    weights = (weights ^ (weights >> 27)) * 0x14D049BB133111EB
    sums = (pixels * (weights | 1)).sum(dim=1)
    return (sums ^ (sums >> 32)) & 0xFFFFFFFF


def _round(tap_logits: Tensor, layout: Layout) -> Rows:
    """Round logits to even steps below the largest, and pack the steps into words."""
    largest = 2**layout.bits - 1
    top = tap_logits.amax(dim=-1, keepdim=True)
    span = (top - tap_logits.amin(dim=-1, keepdim=True)).clamp(1e-6, _LARGEST)
    levels = ((tap_logits - top) * (largest / span)).round_() + largest
    # The padding completes the last word; the clamp below is for spans beyond fp16.
    num_codes = layout.num_taps * layout.num_classes
    padding = layout.num_words * layout.codes_per_word - num_codes
    codes = torch.nn.functional.pad(levels.clamp_min_(0).long().flatten(1), (0, padding))
    grouped = codes.view(len(codes), layout.num_words, layout.codes_per_word)
    words = (grouped << _shifts(layout, codes.device)).sum(dim=-1)
    return Rows(span.half().flatten(1), words.to(torch.int32))


def _levels(rows: Rows, layout: Layout) -> Tensor:
    """Unpack rounded logits, `[B, D, K]` fp32, in numbers of steps."""
    assert rows.codes is not None  # noqa: S101 - rounded rows have them
    shifts = _shifts(layout, rows.codes.device).int()
    codes = (rows.codes[:, :, None] >> shifts).bitwise_and_(2**layout.bits - 1)
    flat = codes.flatten(1)[:, : layout.num_taps * layout.num_classes]
    return flat.float().view(len(codes), layout.num_taps, layout.num_classes)


def _shifts(layout: Layout, device: torch.device) -> Tensor:
    return torch.arange(layout.codes_per_word, device=device) * layout.bits


def _classes(rows: Rows, layout: Layout) -> Tensor:
    assert rows.codes is not None  # noqa: S101 - truncated rows have them
    codes = rows.codes.view(len(rows.codes), layout.num_taps, layout.top_k)
    return codes.long().bitwise_and_(MAX_CLASSES - 1)


def _per_tap(values: Tensor, layout: Layout) -> Tensor:
    return values.view(len(values), layout.num_taps, layout.num_values)
