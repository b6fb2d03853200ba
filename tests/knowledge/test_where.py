"""The distribution over positions: its invariances, its gradient, and which stages have one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from krscale.knowledge.where import (
    GRID,
    SMOOTHING,
    Cells,
    WhereLoss,
    WherePair,
    cells_of,
    pair_stages,
    positions_of,
    where_distributions,
    without_where,
)

SQUARE = (3, 28, 28)
"""Shape of an image."""


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one_pair(cells: Cells) -> WhereLoss:
    return WhereLoss([WherePair(0, 0, cells)])


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 4, 4), (3, 5, 7), (3, 2, 6), (16, 6)])
def test_it_is_a_distribution_by_hand(shape: tuple[int, ...]) -> None:
    stage = maps(2, *shape)
    (found,) = where_distributions([stage], SQUARE)
    rows, columns = cells_of(shape, SQUARE)
    assert found.shape == (2, rows, columns)
    torch.testing.assert_close(found.sum(dim=(1, 2)), torch.ones(2))
    squares = stage.double().square()
    if len(shape) == 2:  # 16 tokens, row by row
        squares = squares.reshape(2, 4, 4, 6).permute(0, 3, 1, 2)
    energies = torch.nn.functional.adaptive_avg_pool2d(squares.mean(dim=1), (rows, columns))
    expected = energies / energies.sum(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_neither_scale_nor_number_of_channels_changes_it(scale: float) -> None:
    stage = maps(2, 3, 8, 8)
    (expected,) = where_distributions([stage])
    for other in (scale * stage, torch.cat([stage, stage], dim=1), -stage, stage.flip(1)):
        torch.testing.assert_close(where_distributions([other])[0], expected, rtol=1e-5, atol=1e-7)
    moved = where_distributions([stage.roll(2, dims=3)])[0]
    torch.testing.assert_close(moved, expected.roll(1, dims=2), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("cells", [(4, 4), (2, 3)])
def test_a_student_that_is_active_nowhere_is_compared_as_everywhere_alike(cells: Cells) -> None:
    """A second pair, with as many cells or more, is compared in the same loss."""
    rows, columns = cells
    pairs = [WherePair(0, 0, cells), WherePair(1, 1, (4, 4))]
    alike = torch.ones(1, 3, 8, 8)
    taught = [torch.full((1, rows, columns), 1 / (rows * columns)), torch.full((1, 4, 4), 1 / 16)]
    dead = torch.zeros(1, 3, rows, columns, requires_grad=True)
    loss = WhereLoss(pairs)([dead, alike], taught)
    torch.testing.assert_close(loss.detach(), torch.zeros(1), rtol=0.0, atol=1e-6)
    loss.sum().backward()
    assert dead.grad is not None
    assert not dead.grad.any()
    sure = torch.zeros(1, rows, columns)
    sure[0, 0, 0] = 1.0
    even = WhereLoss(pairs)([torch.ones(1, 3, rows, columns), alike], [sure, taught[1]])
    found = WhereLoss(pairs)([dead, alike], [sure, taught[1]])
    torch.testing.assert_close(found.detach(), even)


def test_a_stage_that_is_active_nowhere_is_so_everywhere_alike() -> None:
    (found,) = where_distributions([torch.zeros(1, 3, 8, 8)])
    assert torch.equal(found, torch.full((1, 4, 4), 1 / 16))


@pytest.mark.parametrize(
    ("shape", "image_shape", "positions"),
    [
        ((8, 4, 6), SQUARE, (4, 6)),
        ((8, 4, 6), (), (4, 6)),
        ((8, 1, 6), SQUARE, (1, 6)),
        ((8, 1, 1), SQUARE, None),
        ((49, 8), SQUARE, (7, 7)),
        ((49, 8), (), None),  # 7 rows of 7, or a class token and 48 patches
        ((50, 8), SQUARE, None),  # a class token, at whichever end
        ((36, 8), (1, 8, 18), (4, 9)),
        ((36, 8), (1, 18, 8), (9, 4)),
        ((64, 8), (3, 64, 256), (4, 16)),
        ((16, 8), (1, 6, 10), None),  # a class token and 3 rows of 5
        ((15, 8), (1, 6, 10), (3, 5)),
        ((36, 8), (1, 12, 11), None),
        ((1, 8), SQUARE, None),
        ((8,), SQUARE, None),
    ],
)
def test_what_has_positions(
    shape: tuple[int, ...], image_shape: tuple[int, ...], positions: Cells | None
) -> None:
    assert positions_of(shape, image_shape) == positions
    rows, columns = positions or (0, 0)
    assert cells_of(shape, image_shape) == (min(rows, GRID), min(columns, GRID))
    said = without_where(("block",), (shape,), image_shape)
    assert len(said) == (positions is None)
    assert all(repr("block") in line for line in said)


def test_tokens_are_read_as_the_map_that_they_were() -> None:
    image_shape, stage = (1, 8, 18), maps(2, 3, 4, 9)
    tokens = stage.flatten(2).transpose(1, 2)
    shares = where_distributions([stage])
    torch.testing.assert_close(where_distributions([tokens], image_shape), shares)
    other = where_distributions([maps(2, 3, 4, 9, seed=1)])
    found = []
    for own in (stage, tokens):
        pairs = pair_stages([own.shape[1:]], [(4, 4)], image_shape)
        found.append(WhereLoss(pairs)([own], other))
    torch.testing.assert_close(found[0], found[1])


def test_stages_meet_by_number_and_those_without_positions_are_left_out() -> None:
    student = ((3, 8, 8), (4, 2, 2), (5, 1, 1), (6,))
    teacher = ((4, 4), (4, 4), (2, 2), (2, 2))
    assert pair_stages(student, teacher) == (WherePair(0, 0, (4, 4)), WherePair(1, 1, (2, 2)))
    assert pair_stages(student[:2], ((4, 4), (0, 0), (4, 4), (0, 0))) == ()
    assert pair_stages(student[:2], teacher) == (WherePair(0, 1, (4, 4)), WherePair(1, 3, (2, 2)))
    assert pair_stages(student, ()) == ()
    assert pair_stages((), teacher) == ()


def test_the_loss_by_hand() -> None:
    energies = torch.tensor([[[[3.0, 1.0], [0.0, 0.0]]]])
    student, teacher = energies.sqrt(), torch.tensor([[[0.5, 0.0], [0.5, 0.0]]])
    p = (1 - SMOOTHING) * torch.tensor([0.75, 0.25, 0.0, 0.0]).double() + SMOOTHING / 4
    q = (1 - SMOOTHING) * torch.tensor([0.5, 0.0, 0.5, 0.0]).double() + SMOOTHING / 4
    expected = (q * (q / p).log()).sum().float()
    torch.testing.assert_close(one_pair((2, 2))([student], [teacher])[0], expected)


def test_pairs_of_unequal_cells_are_their_mean() -> None:
    student, teacher = [maps(3, 2, 8, 8), maps(3, 5, 2, 3)], [maps(3, 7, 4, 4), maps(3, 9, 6, 6)]
    pairs = pair_stages([(2, 8, 8), (5, 2, 3)], [(4, 4), (4, 4)])
    assert [pair.cells for pair in pairs] == [(4, 4), (2, 3)]
    shares = where_distributions(teacher)
    each = [one_pair(p.cells)([student[n]], [shares[n]]) for n, p in enumerate(pairs)]
    torch.testing.assert_close(WhereLoss(pairs)(student, shares), (each[0] + each[1]) / 2)


def test_it_is_zero_without_gradient_where_both_agree_and_positive_elsewhere() -> None:
    stage = maps(4, 3, 8, 8).requires_grad_()
    for same in (stage, torch.cat([stage, stage], dim=1) * 7):
        shares = where_distributions([same.detach()])
        loss = one_pair((4, 4))([stage], shares)
        (gradient,) = torch.autograd.grad(loss.sum(), stage)
        assert loss.abs().max() < 1e-5
        assert gradient.abs().max() < 1e-5
    assert (one_pair((4, 4))([stage], where_distributions([maps(4, 3, 8, 8, seed=1)])) > 1e-2).all()


def test_gradients_are_those_of_finite_differences() -> None:
    stage = maps(2, 2, 4, 4).double()
    shares = where_distributions([maps(2, 3, 4, 4, seed=1)])
    pair, step = one_pair((2, 2)), 1e-3
    leaf = stage.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(pair([leaf], shares).sum(), leaf)
    for index in ((0, 0, 0, 0), (1, 1, 2, 3)):
        moved = [stage.clone(), stage.clone()]
        moved[0][index] += step
        moved[1][index] -= step
        above, below = (pair([other], shares).sum() for other in moved)
        assert float(above - below) / (2 * step) == pytest.approx(float(gradient[index]), abs=1e-3)


def test_the_teacher_gets_no_gradient() -> None:
    teacher = where_distributions([maps(2, 3, 4, 4)])[0].requires_grad_()
    loss = one_pair((2, 2))([maps(2, 3, 4, 4, seed=1).requires_grad_()], [teacher])
    loss.sum().backward()
    assert teacher.grad is None


@pytest.mark.parametrize("scale", [0.0, 1e-8, 1e8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_whatever_the_features(scale: float, dtype: torch.dtype) -> None:
    stage = (scale * maps(2, 3, 8, 8)).to(dtype).requires_grad_()
    teacher = where_distributions([torch.zeros(2, 3, 8, 8)])
    loss = one_pair((4, 4))([stage], teacher)
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss).all()
    assert stage.grad is not None
    assert torch.isfinite(stage.grad).all()


def test_descent_moves_the_activity_to_where_the_teacher_is_active() -> None:
    teacher = torch.zeros(1, 4, 8, 8)
    teacher[:, :, 4:, 4:] = 1.0
    stage = maps(1, 3, 8, 8).requires_grad_()
    optimiser = torch.optim.Adam([stage], 0.05)
    for _ in range(100):
        optimiser.zero_grad()
        one_pair((4, 4))([stage], where_distributions([teacher])).sum().backward()
        optimiser.step()
    assert where_distributions([stage.detach()])[0][0, 2:, 2:].sum() > 0.9
