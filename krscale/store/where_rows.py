"""Rows of distributions over positions: encoding into three bits per cell, and decoding.

A row holds the square root of the ratio of each cell's share to the largest share of its stage, in
even steps: small shares, which are many, lose less precision than without the root.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from krscale.store.layout import WHERE_BITS, WhereLayout
from krscale.store.rows import Rows

_LARGEST = 2**WHERE_BITS - 1
_PACKED = 16  # cells in three words of 16 bits
# Changes due to another device's arithmetic (TF32 convolutions: 1 %).
_TOLERANCE = 0.03


def encode(shares: Tensor, layout: WhereLayout) -> Rows:
    """Encode distributions `[B, P]`, side by side, fp32; the words are the bits of uint16."""
    levels = (_roots(shares, layout) * _LARGEST).round_().to(torch.int64)
    groups = layout.num_words // WHERE_BITS
    padding = groups * _PACKED - levels.shape[1]
    levels = torch.nn.functional.pad(levels, (0, padding)).view(len(levels), groups, _PACKED)
    packed = (levels << _shifts(levels.device)).sum(dim=-1, keepdim=True)
    words = (packed >> _words(levels.device)).bitwise_and_(0xFFFF)
    return Rows(words.to(torch.int16).flatten(1), None)


def decode(rows: Rows, layout: WhereLayout) -> tuple[Tensor, ...]:
    """Return the distributions, `[B, rows, columns]` fp32 each.

    Example:
        >>> layout = WhereLayout(((1, 2), (0, 0)))  # two cells; a stage without positions
        >>> decode(encode(torch.tensor([[0.9, 0.1]]), layout), layout)[0].round(decimals=2)
        tensor([[[0.9200, 0.0800]]])
    """
    squares = _kept_roots(rows, layout).square_()
    found = []
    for part, cells in zip(_split(squares, layout), layout.where, strict=True):
        shares = part / part.sum(dim=1, keepdim=True)
        found.append(shares.reshape(len(part), *cells))
    return tuple(found)


def variation(shares: Tensor, rows: Rows, layout: WhereLayout) -> Tensor:
    """Return the encoding error of each stage, the total variation, `[B, stages]`."""
    pairs = zip(_split(shares, layout), decode(rows, layout), strict=True)
    return torch.stack(
        [0.5 * (exact - kept.flatten(1)).abs().sum(dim=1) for exact, kept in pairs], dim=1
    )


def deviations(rows: Rows, shares: Tensor, layout: WhereLayout) -> tuple[Tensor, Tensor]:
    """Compare stored rows with the teacher's distributions now, `[B, P]`, by roots of shares."""
    difference = (_roots(shares, layout) - _kept_roots(rows, layout)).abs()
    return difference, torch.full_like(difference, 0.5 / _LARGEST + _TOLERANCE)


def _roots(shares: Tensor, layout: WhereLayout) -> Tensor:
    """Return the root of the ratio of each cell's share to its stage's largest, in [0, 1]."""
    tiny = torch.finfo(torch.float32).tiny
    parts = [part / _largest(part).clamp_min(tiny) for part in _split(shares, layout)]
    return torch.cat(parts, dim=1).sqrt_()


def _largest(part: Tensor) -> Tensor:
    return part.amax(dim=1, keepdim=True) if part.shape[1] else part.new_ones(len(part), 1)


def _kept_roots(rows: Rows, layout: WhereLayout) -> Tensor:
    """Unpack `[B, P]` roots."""
    words = rows.values.to(torch.int64).bitwise_and_(0xFFFF)
    words = words.view(len(words), layout.num_words // WHERE_BITS, WHERE_BITS)
    packed = (words << _words(words.device)).sum(dim=-1, keepdim=True)
    levels = (packed >> _shifts(words.device)).bitwise_and_(_LARGEST).flatten(1)
    roots: Tensor = levels[:, : sum(map(math.prod, layout.where))].float() / _LARGEST
    return roots


def _split(cells: Tensor, layout: WhereLayout) -> list[Tensor]:
    return list(torch.split(cells, [math.prod(of_stage) for of_stage in layout.where], dim=1))


def _shifts(device: torch.device) -> Tensor:
    return torch.arange(_PACKED, device=device) * WHERE_BITS


def _words(device: torch.device) -> Tensor:
    return torch.arange(WHERE_BITS, device=device) * 16
