"""Where a stage is active: a distribution over positions, beside the one over classes.

The energy of a stage at a position is the mean of the squares over the channels. Divided by its sum
over the positions, it is a distribution that depends neither on the number of channels nor on the
scale of the features. It is compared on a grid available in both networks, whatever their
resolutions.

Source of the energies: Zagoruyko, Komodakis, Paying More Attention to Attention, ICLR 2017,
arXiv 1612.03928, which compares maps of norm 1 by their squared distance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krscale.knowledge.aggregation import student_tap
from krscale.knowledge.cells import Cells, cell_means

GRID = 4
"""Maximum number of rows and of columns of cells."""
SMOOTHING = 0.01
"""Share of both distributions that is spread evenly before the comparison, as cells may be 0."""
LEAST = 1e-12
"""Energy of a stage below which it counts as equally active everywhere."""


@dataclass(frozen=True)
class WherePair:
    """A stage of the student, and the stage of the teacher it is compared with.

    Attributes:
        student: Number of the student's stage, from 0.
        teacher: Index among the teacher's stages that have a distribution, from 0.
        cells: Rows and columns that both stages have.
        positions: Rows and columns of the student's tokens; None for a map, whose shape gives them.
    """

    student: int
    teacher: int
    cells: Cells
    positions: Cells | None = None


def positions_of(shape: Sequence[int], image_shape: Sequence[int] = ()) -> Cells | None:
    """Return rows and columns of a stage's positions, or None if it has no grid of several.

    Tokens are positions in row order if they form a grid with the proportions of the image. They do
    not with a class token, or if the patches do not fill the image.

    Args:
        shape: Shape of the stage's output for one image: `[C, H, W]`, `[T, C]` or `[C]`.
        image_shape: `(C, H, W)` as the network takes it. Without it, tokens never have a grid: even
            a square number of them may be 4 rows of 9.

    Example:
        >>> positions_of((8, 4, 6)), positions_of((49, 8), (3, 28, 28))
        ((4, 6), (7, 7))
        >>> positions_of((36, 8), (3, 8, 18)), positions_of((50, 8), (3, 28, 28))
        ((4, 9), None)
    """
    if len(shape) == 3:
        rows, columns = shape[1:]
    elif len(shape) == 2 and image_shape:
        rows, columns = _grid_of(shape[0], *image_shape[1:])
    else:
        return None
    return (rows, columns) if rows * columns > 1 else None


def _grid_of(num_tokens: int, height: int, width: int) -> Cells:
    """Return rows and columns of tokens, in the ratio of height to width; (0, 0) if impossible."""
    divisor = math.gcd(height, width)
    rows, columns = height // divisor, width // divisor
    times = math.isqrt(num_tokens // (rows * columns))
    rows, columns = times * rows, times * columns
    return (rows, columns) if rows * columns == num_tokens else (0, 0)


def token_grids(
    shapes: Sequence[Sequence[int]], image_shape: Sequence[int] = ()
) -> tuple[Cells | None, ...]:
    """Return `positions_of` each stage with tokens; None for maps, whose shape gives them.

    Example:
        >>> token_grids([(8, 4, 4), (49, 8)], (3, 28, 28))
        (None, (7, 7))
    """
    return tuple(positions_of(s, image_shape) if len(s) == 2 else None for s in shapes)


def cells_of(shape: Sequence[int], image_shape: Sequence[int] = ()) -> Cells:
    """Return rows and columns of a stage's cells: `GRID` each, or fewer if it has fewer positions.

    `(0, 0)` if there are no positions; see `positions_of`.

    Example:
        >>> cells_of((8, 16, 3)), cells_of((8,))
        ((4, 3), (0, 0))
    """
    rows, columns = positions_of(shape, image_shape) or (0, 0)
    return min(GRID, rows), min(GRID, columns)


def without_where(
    paths: Sequence[str], shapes: Sequence[Sequence[int]], image_shape: Sequence[int] = ()
) -> tuple[str, ...]:
    """Return a message for each stage that has no distribution over positions.

    Args:
        paths: Names of the stages.
        shapes: Shapes of their outputs for one image.
        image_shape: `(C, H, W)` as the network takes it.

    Example:
        >>> without_where(["stem", "pool"], [(8, 4, 4), (8,)])
        ("'pool' gives [8], which has no grid of positions: it teaches what, not where",)
    """
    size = "x".join(map(str, image_shape[1:]))
    return tuple(
        f"{path!r} gives {list(shape)}, which has no grid of positions"
        f"{f' as an image of {size} has' if len(shape) == 2 and size else ''}"
        ": it teaches what, not where"
        for path, shape in zip(paths, shapes, strict=True)
        if positions_of(shape, image_shape) is None
    )


def energy(stage: Tensor, cells: Cells, positions: Cells | None = None) -> Tensor:
    """Return the mean energy in every cell, `[B, rows * columns]` fp32.

    Args:
        stage: `[B, C, H, W]` or `[B, T, C]`.
        cells: Rows and columns, at most those of the positions.
        positions: Rows and columns of tokens.

    Example:
        >>> stage = torch.zeros(1, 2, 4, 4)
        >>> stage[:, :, 0, 0] = 2.0  # 4 at one of a cell's four positions
        >>> energy(stage, (2, 2))
        tensor([[1., 0., 0., 0.]])
    """
    dim = 2 if stage.ndim == 3 else 1
    squares: Tensor = _MeanSquare.apply(stage.float(), dim)  # type: ignore[no-untyped-call]
    if positions is not None:
        squares = squares.reshape(len(stage), *positions)
    return cell_means(squares[:, None], cells).flatten(1)


class _MeanSquare(torch.autograd.Function):
    """The mean of the squares over a dimension.

    The gradient is one product. Torch's gradient of the square and the mean takes several times as
    long, which at a small student's first stage would be a tenth of the step.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(values)
        ctx.dim = dim
        return values.square().sum(dim=dim) / values.shape[dim]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (values,) = ctx.saved_tensors
        scaled = gradients[0] * (2.0 / values.shape[ctx.dim])
        return values * scaled.unsqueeze(ctx.dim), None


def shares_of(energies: Tensor) -> Tensor:
    """Return energies `[..., P]` divided by their sum; equal shares if the sum is 0.

    Example:
        >>> shares_of(torch.tensor([[3.0, 1.0], [0.0, 0.0]]))
        tensor([[0.7500, 0.2500],
                [0.5000, 0.5000]])
    """
    total = energies.sum(dim=-1, keepdim=True)
    even = total <= LEAST
    return torch.where(even, 1.0 / energies.shape[-1], energies / total.masked_fill(even, 1.0))


def where_distributions(
    stages: Sequence[Tensor], image_shape: Sequence[int] = ()
) -> tuple[Tensor, ...]:
    """Return the distribution over cells of every stage, `[B, rows, columns]` fp32.

    For a stage without positions it has no cells, `[B, 0, 0]`.

    Args:
        stages: Outputs of the stages.
        image_shape: `(C, H, W)` as the network takes it; see `positions_of`.

    Example:
        >>> stage = torch.zeros(1, 3, 8, 8)
        >>> stage[:, :, 0, 0] = 5.0  # active in one corner
        >>> where_distributions([stage])[0][0, 0]
        tensor([1., 0., 0., 0.])
    """
    found = []
    grids = token_grids([stage.shape[1:] for stage in stages], image_shape)
    for stage, grid in zip(stages, grids, strict=True):
        cells = cells_of(stage.shape[1:], image_shape)
        empty = stage.new_zeros(len(stage), 0)
        shares = shares_of(energy(stage, cells, grid)) if cells[0] else empty
        found.append(shares.float().reshape(len(stage), *cells))
    return tuple(found)


def pair_stages(
    student: Sequence[Sequence[int]], teacher: Sequence[Cells], image_shape: Sequence[int] = ()
) -> tuple[WherePair, ...]:
    """Return the pairs of stages to compare: those at the same relative depth.

    With equally many stages, these are one to one. A pair is left out if either stage has no
    positions.

    Args:
        student: Shapes of the outputs of the student's stages for one image.
        teacher: Cells of every stage of the teacher.
        image_shape: `(C, H, W)` as the student takes it.

    Example:
        >>> pairs = pair_stages([(8, 8, 8), (16, 2, 2)], [(4, 4), (4, 4), (4, 4)])
        >>> [(pair.student, pair.teacher, pair.cells) for pair in pairs]
        [(0, 1, (4, 4)), (1, 2, (2, 2))]
    """
    pairs: list[WherePair] = []
    grids = token_grids(student, image_shape)
    for number, shape in enumerate(student if teacher else ()):
        met = student_tap(number + 1, len(student), len(teacher)) - 1
        rows, columns = map(min, cells_of(shape, image_shape), teacher[met])
        if rows * columns > 1:
            pairs.append(WherePair(number, met, (rows, columns), grids[number]))
    return tuple(pairs)


class WhereLoss(nn.Module):
    """The divergence of the teacher's distribution over positions from the student's.

    The value is the cross-entropy minus the entropy of the teacher's distribution, so it is 0 where
    both agree; the gradient is that of the cross-entropy. Where the student has fewer cells, each
    is compared with the mean of the teacher's cells that it overlaps: the teacher's cells are
    stored once for all students.

    Args:
        pairs: The pairs of stages to compare, at least one.
    """

    floor: Tensor
    absent: Tensor
    least: Tensor

    def __init__(self, pairs: Sequence[WherePair]) -> None:
        super().__init__()
        self.pairs = tuple(pairs)
        counts = torch.tensor([math.prod(pair.cells) for pair in pairs]).view(-1, 1)
        self.num_cells = int(counts.max())
        there = torch.arange(self.num_cells) < counts
        # All pairs are computed together; those with fewer cells are padded with absent cells.
        self.register_buffer("floor", there * (SMOOTHING / counts), persistent=False)
        self.register_buffer("absent", (~there).float(), persistent=False)
        # For a stage without energy only this remains: equal shares, as in the teacher's.
        self.register_buffer("least", there * (LEAST / counts), persistent=False)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Return the mean divergence over the pairs, `[B]` fp32.

        Args:
            student: Outputs of the student's stages.
            teacher: The teacher's distributions `[B, rows, columns]`; they get no gradient.
        """
        energies = (energy(student[p.student], p.cells, p.positions) for p in self.pairs)
        own = torch.stack([self._row(each) for each in energies], 1)
        with torch.no_grad():
            taught = [_on_cells(teacher[p.teacher].float(), p.cells) for p in self.pairs]
            targets = self._smooth(torch.stack([self._row(flat) for flat in taught], 1))
            entropy = torch.special.xlogy(targets, targets).sum(dim=(1, 2))
        crossed = targets * (self._smooth(own) + self.absent).log()
        divergence: Tensor = (entropy - crossed.sum(dim=(1, 2))) / len(self.pairs)
        return divergence

    def _row(self, energies: Tensor) -> Tensor:
        missing = self.num_cells - energies.shape[1]
        return F.pad(energies, (0, missing)) if missing else energies

    def _smooth(self, energies: Tensor) -> Tensor:
        """Return smoothed shares of `[B, M, P]`: above 0 for every cell, 0 for absent cells."""
        energies = energies + self.least
        total = energies.sum(dim=-1, keepdim=True)
        smoothed: Tensor = (1.0 - SMOOTHING) * (energies / total) + self.floor
        return smoothed


def _on_cells(distribution: Tensor, cells: Cells) -> Tensor:
    """Return a distribution `[B, rows, columns]` on coarser cells, flattened."""
    return cell_means(distribution[:, None], cells).flatten(1)
