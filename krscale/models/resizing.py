"""Resize with Pillow's filters as two matrix products, identical on every device and in graphs.

A row of a resized image is a weighted mean of rows of the image, and a column is one of columns.
The weights depend only on the sizes. Shrinking widens the filter to prevent aliasing, as in Pillow
and in `interpolate(..., antialias=True)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

Size = tuple[int, int]
"""Height and width in pixels."""


def _triangle(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


def _cubic(x: float) -> float:
    a, x = -0.5, abs(x)
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    return (((x - 5.0) * x + 8.0) * x - 4.0) * a if x < 2.0 else 0.0


def _lanczos(x: float) -> float:
    if x == 0.0:
        return 1.0
    return 3.0 * math.sin(math.pi * x) * math.sin(math.pi * x / 3.0) / (math.pi * x) ** 2


_FILTERS: dict[str, tuple[Callable[[float], float], float]] = {
    "bilinear": (_triangle, 1.0),
    "bicubic": (_cubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}
"""Filters by name, each with its reach in pixels of the smaller image."""
INTERPOLATIONS = ("nearest", *_FILTERS)
"""Names that `resize` accepts."""


def resize(images: Tensor, size: Size, interpolation: str) -> Tensor:
    """Scale images until they cover a size, and crop the excess evenly from both sides.

    Args:
        images: `[B, C, H, W]` floating point.
        size: Height and width of the result. If its aspect ratio differs from that of the images,
            these are cropped.
        interpolation: One of `INTERPOLATIONS`.

    Returns:
        `[B, C, *size]`, in the precision of `images`. Cubic filters may exceed the images' range.

    Example:
        >>> wide = torch.arange(4.0).expand(1, 1, 2, 4)
        >>> resize(wide, (2, 2), "bilinear")  # of another shape: the middle is kept
        tensor([[[[1., 2.],
                  [1., 2.]]]])
    """
    rows, columns = resize_weights(tuple(images.shape[-2:]), size, interpolation, images.device)
    # Autocast would multiply in bf16, whose 8 bits are too few for weighted sums of 8-bit pixels.
    with torch.autocast(images.device.type, enabled=False):
        scaled: Tensor = rows.to(images.dtype) @ images @ columns.to(images.dtype)
    return scaled


@lru_cache(maxsize=32)
def resize_weights(
    old: Size, new: Size, interpolation: str, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the weights of `rows @ image @ columns`: `[new H, old H]` and `[old W, new W]`.

    Args:
        old: Height and width of the images.
        new: Height and width of the result.
        interpolation: One of `INTERPOLATIONS`.
        device: Device for the weights.

    Example:
        >>> rows, _ = resize_weights((4, 4), (2, 2), "bilinear", torch.device("cpu"))
        >>> rows  # shrinking reads more than two pixels
        tensor([[0.4286, 0.4286, 0.1429, 0.0000],
                [0.0000, 0.1429, 0.4286, 0.4286]])
    """
    step = min(old[0] / new[0], old[1] / new[1])  # pixels of an image per pixel of the result
    rows, columns = (
        _weights(before, after, step, interpolation) for before, after in zip(old, new, strict=True)
    )
    return rows.float().to(device), columns.T.float().contiguous().to(device)


def _weights(before: int, after: int, step: float, interpolation: str) -> Tensor:
    """Return the weights of one side, `[after, before]` fp64."""
    first = (before - after * step) / 2  # where the part that is kept begins
    weights = torch.zeros(after, before, dtype=torch.float64)
    for place in range(after):
        centre = first + (place + 0.5) * step
        if interpolation == "nearest":
            weights[place, min(int(centre), before - 1)] = 1.0
            continue
        kernel, reach = _FILTERS[interpolation]
        widened = max(1.0, step)
        low = max(0, int(centre - reach * widened + 0.5))
        high = min(before, int(centre + reach * widened + 0.5))
        taken = [kernel((pixel - centre + 0.5) / widened) for pixel in range(low, high)]
        weights[place, low:high] = torch.tensor(taken, dtype=torch.float64) / sum(taken)
    return weights
