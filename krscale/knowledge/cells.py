"""Means over the cells of a grid, by which the student's heads and the energies read a map."""

from __future__ import annotations

from array import array
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

Cells = tuple[int, int]
"""Rows and columns."""
SMALL = 256
"""Number of positions up to which a product is faster than torch's pooling on a CPU."""


def cell_means(maps: Tensor, cells: Cells) -> Tensor:
    """Return the mean over the positions of every cell, `[B, C, rows, columns]`.

    If the cells do not divide the map evenly, neighbours overlap as in torch's adaptive pooling.

    Args:
        maps: `[B, C, H, W]` fp32.
        cells: Rows and columns, at most `H` and `W`.

    Example:
        >>> maps = torch.arange(16.0).view(1, 1, 4, 4)
        >>> cell_means(maps, (2, 2)).tolist(), cell_means(maps, (1, 3)).tolist()
        ([[[[2.5, 4.5], [10.5, 12.5]]]], [[[[6.5, 7.5, 8.5]]]])
    """
    height, width = maps.shape[2:]
    rows, columns = cells
    if (height, width) == cells:
        return maps
    if _is_small_and_learns(maps) and not torch.compiler.is_compiling():
        # The same means by a product, which is faster (docs/log.md, 2026-11-29).
        averaging = torch.frombuffer(_averaging(height, width, cells), dtype=torch.float32)
        means = maps.flatten(2) @ averaging.view(height * width, rows * columns).to(maps.dtype)
        return means.view(*maps.shape[:2], rows, columns)
    if height % rows == 0 and width % columns == 0:
        # The same means; the gradient is faster, and deterministic on GPUs.
        return F.avg_pool2d(maps, (height // rows, width // columns))
    return F.adaptive_avg_pool2d(maps, cells)


def _is_small_and_learns(maps: Tensor) -> bool:
    learns = maps.requires_grad and torch.is_grad_enabled()
    return learns and maps.device.type == "cpu" and maps.shape[2:].numel() <= SMALL


@lru_cache(maxsize=64)
def _averaging(height: int, width: int, cells: Cells) -> array[float]:
    """Return `[H * W, rows * columns]`, the weight of each position in the mean of each cell.

    The cache holds no tensor: one that was made without gradients or within a transform of
    torch.func must not be used in another context.
    """
    of_rows, of_columns = _shares(height, cells[0]), _shares(width, cells[1])
    return array(
        "f", (a * b for row in of_rows for column in of_columns for a in row for b in column)
    )


def _shares(length: int, parts: int) -> list[list[float]]:
    """Return the weight of each position of a row in the mean of each part."""
    bounds = [(part * length // parts, -(-(part + 1) * length // parts)) for part in range(parts)]
    return [
        [(start <= position < stop) / (stop - start) for start, stop in bounds]
        for position in range(length)
    ]
