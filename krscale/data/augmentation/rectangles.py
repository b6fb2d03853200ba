"""Random rectangles within an image: a crop scaled back to its size, and a part painted over.

All arithmetic is on integers, as everywhere in views. The possible sizes of a rectangle, which need
roots and powers, are tabulated once in decimal arithmetic, which rounds identically on every
machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, localcontext
from functools import lru_cache

import torch
from torch import Tensor

PLACES = 1 << 16
"""Outcomes of a draw that determines a position in a range, or whether something happens."""

_AREAS, _ASPECTS = 64, 32
NUM_SIZES = _AREAS * _ASPECTS
"""Number of sizes that a rectangle may have, all equally likely."""

_PIXEL = 256  # positions between pixels are multiples of 1 / _PIXEL


def resized_crop(images: Tensor, draws: Mapping[str, Tensor], min_area: float) -> Tensor:
    """Cut a rectangle from each image and scale it to the image's size, bilinearly.

    Its area is uniform from `min_area` to 1, as a share of the image's. Its aspect ratio, relative
    to the image's, is log-uniform from 3/4 to 4/3.

    Args:
        images: `[B, C, H, W]` uint8.
        draws: `resized_size` below `NUM_SIZES`; `resized_row` and `resized_column` below `PLACES`.
        min_area: Smallest share of the image's area.

    Example:
        >>> image = torch.arange(0, 80, 10, dtype=torch.uint8).expand(1, 1, 8, 8)
        >>> names = ("resized_size", "resized_row", "resized_column")
        >>> cropped = resized_crop(image, dict.fromkeys(names, torch.tensor([0])), 0.25)
        >>> cropped[0, 0, 0]  # five columns of the first corner
        tensor([ 0,  4, 11, 17, 23, 29, 36, 40], dtype=torch.uint8)
    """
    height, width = images.shape[-2:]
    table = _sizes(height, width, (str(min_area), "1"), "0.75", images.device)
    heights, widths = table.index_select(0, draws["resized_size"]).unbind(1)
    top, bottom, row_share = _between(height, heights, draws["resized_row"])
    left, right, column_share = _between(width, widths, draws["resized_column"])
    rows = _blend(images, 2, (top, bottom), row_share)
    pixels = _blend(rows, 3, (left, right), column_share)
    return ((pixels + _PIXEL * _PIXEL // 2) // (_PIXEL * _PIXEL)).to(torch.uint8)


def erase(images: Tensor, draws: Mapping[str, Tensor], share: float) -> Tensor:
    """Paint a rectangle of one random colour over a share of the images.

    Its area is uniform from 2 % to 33 % of the image's. Its aspect ratio, relative to the image's,
    is log-uniform from 0.3 to 1 / 0.3.

    Args:
        images: `[B, C, H, W]` uint8.
        draws: `erase`, `erase_row` and `erase_column` below `PLACES`, `erase_size` below
            `NUM_SIZES`, and `erase_colour_C` below 256 for every channel C.
        share: Share of the images that are painted over.

    Example:
        >>> zero = torch.tensor([0, 0])
        >>> draws = {"erase_size": zero, "erase_row": zero, "erase_column": zero}
        >>> draws |= {"erase": torch.tensor([0, PLACES - 1]), "erase_colour_0": zero + 7}
        >>> images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
        >>> erase(images, draws, share=0.5).amax(dim=(1, 2, 3))  # half of the images
        tensor([7, 0], dtype=torch.uint8)
    """
    channels, height, width = images.shape[1:]
    table = _sizes(height, width, ("0.02", "0.33"), "0.3", images.device)
    heights, widths = table.index_select(0, draws["erase_size"]).unbind(1)
    by_row = covered(height, heights, draws["erase_row"])
    by_column = covered(width, widths, draws["erase_column"])
    happens = draws["erase"] < round(share * PLACES)
    inside = by_row[:, :, None] & by_column[:, None, :] & happens[:, None, None]
    colours = [draws[f"erase_colour_{channel}"] for channel in range(channels)]
    colour = torch.stack(colours, dim=1).to(torch.uint8)
    return torch.where(inside[:, None], colour[:, :, None, None], images)


def covered(size: int, lengths: Tensor, place: Tensor) -> Tensor:
    """Return which of `size` coordinates each interval covers, `[B, size]` bool.

    Args:
        size: Length of a side of the image.
        lengths: Lengths `[B]` of the intervals, 1 to `size`.
        place: `[B]` below `PLACES`: where each begins within the range that its length permits.

    Example:
        >>> covered(6, torch.tensor([2, 2, 6]), torch.tensor([0, PLACES - 1, 0])).int()
        tensor([[1, 1, 0, 0, 0, 0],
                [0, 0, 0, 0, 1, 1],
                [1, 1, 1, 1, 1, 1]], dtype=torch.int32)
    """
    first = _first(size, lengths, place)[:, None]
    at = torch.arange(size, device=lengths.device)
    return (at >= first) & (at < first + lengths[:, None])


def _first(size: int, lengths: Tensor, place: Tensor) -> Tensor:
    return place * (size - lengths + 1) // PLACES


def _between(size: int, lengths: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two coordinates each output reads and the second's share, `[B, size]` each."""
    centres = 2 * torch.arange(size, device=lengths.device) + 1
    at = centres * lengths[:, None] * _PIXEL // (2 * size) - _PIXEL // 2
    last = lengths[:, None] - 1
    at = torch.minimum(at.clamp_min(0), last * _PIXEL)
    low = at // _PIXEL
    first = _first(size, lengths, place)[:, None]
    return first + low, first + torch.minimum(low + 1, last), at % _PIXEL


def _blend(images: Tensor, axis: int, read: tuple[Tensor, Tensor], share: Tensor) -> Tensor:
    """Read two coordinates for each position of an axis and blend them; int32, times 256."""
    shape = [len(images), 1, 1, 1]
    shape[axis] = -1
    low, high = (
        images.gather(axis, index.view(shape).expand_as(images)).to(torch.int32) for index in read
    )
    of_high = share.to(torch.int32).view(shape)
    return low * (_PIXEL - of_high) + high * of_high


@lru_cache(maxsize=32)
def _sizes(
    height: int, width: int, areas: tuple[str, str], aspect: str, device: torch.device
) -> Tensor:
    """Return heights and widths `[NUM_SIZES, 2]`: every area with every aspect ratio.

    Aspect ratios go from `aspect` to its inverse; sides are limited to those of the image.
    """
    with localcontext(prec=30):
        low, high = map(Decimal, areas)
        roots = [(low + (high - low) * i / (_AREAS - 1)).sqrt() for i in range(_AREAS)]
        # The square root of the aspect ratio, from aspect ** 0.5 to aspect ** -0.5.
        logarithm = Decimal(aspect).ln() / 2
        ratios = [
            (logarithm * (1 - Decimal(2 * i) / (_ASPECTS - 1))).exp() for i in range(_ASPECTS)
        ]
        pairs = [
            (_whole(height * root * ratio, height), _whole(width * root / ratio, width))
            for root in roots
            for ratio in ratios
        ]
    return torch.tensor(pairs, device=device)


def _whole(length: Decimal, longest: int) -> int:
    return min(max(round(length), 1), longest)
