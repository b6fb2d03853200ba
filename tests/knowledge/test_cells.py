"""Means over cells equal torch's own pooling, whichever way they are computed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from krscale.knowledge.cells import SMALL, cell_means

SHAPES = [
    # Map, cells: cells that divide it, that do not, a single row, one cell, as many as positions.
    ((8, 8), (4, 4)),
    ((7, 7), (4, 4)),
    ((5, 9), (2, 4)),
    ((1, 6), (1, 4)),
    ((6, 6), (1, 1)),
    ((4, 4), (4, 4)),
    ((16, 16), (4, 4)),  # the largest that counts as small
    ((17, 17), (4, 4)),
    ((32, 24), (4, 4)),
]


def _maps(size: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 2, *size, dtype=torch.float64, generator=generator).to(dtype)


def test_sizes_of_both_kinds_are_tested() -> None:
    positions = [height * width for (height, width), _ in SHAPES]
    assert SMALL in positions
    assert max(positions) > SMALL


@pytest.mark.parametrize(("size", "cells"), SHAPES)
def test_means_and_gradients_are_those_of_adaptive_pooling(
    size: tuple[int, int], cells: tuple[int, int]
) -> None:
    ours, theirs = (_maps(size).requires_grad_() for _ in range(2))
    expected = F.adaptive_avg_pool2d(theirs, cells)
    found = cell_means(ours, cells)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))

    torch.testing.assert_close(found, expected)
    of_ours, of_theirs = (
        torch.autograd.grad((means * weights).sum(), maps)[0]
        for means, maps in ((found, ours), (expected, theirs))
    )
    torch.testing.assert_close(of_ours, of_theirs)


@pytest.mark.parametrize(("size", "cells"), SHAPES)
def test_means_without_a_gradient_are_the_same(
    size: tuple[int, int], cells: tuple[int, int]
) -> None:
    maps = _maps(size)
    with_gradient = cell_means(maps.clone().requires_grad_(), cells)
    with torch.inference_mode():
        without = cell_means(maps, cells)
    torch.testing.assert_close(with_gradient.detach(), without.clone())


def test_maps_may_lie_in_memory_in_another_order() -> None:
    maps = _maps((8, 8)).to(memory_format=torch.channels_last).requires_grad_()
    torch.testing.assert_close(cell_means(maps, (4, 4)), F.avg_pool2d(maps, 2))


def test_gradient_is_that_of_finite_differences() -> None:
    maps = _maps((5, 6), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda maps: cell_means(maps, (3, 4)), maps)


def test_default_device_and_dtype_do_not_matter() -> None:
    maps = _maps((6, 6)).requires_grad_()
    expected = cell_means(maps, (4, 4))
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = cell_means(maps, (4, 4))
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found, expected)


def test_an_empty_batch_has_no_means() -> None:
    maps = torch.zeros(0, 2, 8, 8, requires_grad=True)
    means = cell_means(maps, (4, 4))
    means.sum().backward()
    assert means.shape == (0, 2, 4, 4)
    assert maps.grad is not None


def test_means_under_vmap_are_those_of_each() -> None:
    maps = torch.stack([_maps((6, 6)), 2.0 * _maps((6, 6))])
    each = torch.stack([cell_means(part, (4, 4)) for part in maps])
    torch.testing.assert_close(torch.vmap(lambda part: cell_means(part, (4, 4)))(maps), each)


def test_what_a_transform_has_met_is_right_outside_of_it() -> None:
    maps = _maps((6, 10))
    of_transform = torch.func.grad(lambda maps: cell_means(maps, (3, 4)).square().sum())(maps)
    outside = maps.clone().requires_grad_()
    cell_means(outside, (3, 4)).square().sum().backward()
    assert outside.grad is not None
    torch.testing.assert_close(outside.grad, of_transform)
