"""RKD against values computed by hand, and against loops over pairs and triples."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from krscale.methods.rkd import rkd_loss

Points = list[list[float]]


def huber(difference: float) -> float:
    return 0.5 * difference**2 if abs(difference) < 1 else abs(difference) - 0.5


def by_loops(student: Points, teacher: Points) -> tuple[float, float]:
    """The authors' two losses of a batch: means over all pairs and all triples."""

    def distances(points: Points) -> list[list[float]]:
        found = [[math.dist(a, b) for b in points] for a in points]
        positive = [d for row in found for d in row if d > 0]
        return [[d / (sum(positive) / len(positive)) for d in row] for row in found]

    def cosine(points: Points, i: int, j: int, k: int) -> float:
        first, second = ([b - a for a, b in zip(points[i], points[n], strict=True)] for n in (j, k))
        lengths = math.hypot(*first) * math.hypot(*second)
        return sum(a * b for a, b in zip(first, second, strict=True)) / lengths if lengths else 0.0

    every = range(len(student))
    own, theirs = distances(student), distances(teacher)
    of_pairs = [huber(own[i][j] - theirs[i][j]) for i in every for j in every]
    of_triples = [
        huber(cosine(student, i, j, k) - cosine(teacher, i, j, k))
        for i in every for j in every for k in every
    ]  # fmt: skip
    return sum(of_pairs) / len(of_pairs), sum(of_triples) / len(of_triples)


def test_by_hand() -> None:
    # A right angle with sides 3 and 4: distances 3, 4 and 5, over their mean 3/4, 1 and 5/4.
    teacher = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    # On a line: distances 1, 2 and 1, over their mean 3/4, 3/2 and 3/4.
    student = torch.tensor([[0.0], [1.0], [2.0]])
    once = 0.5 * 0.5**2 / 3  # a pair is off by 1/2: once in the first two rows, twice in the third
    found = rkd_loss(student, teacher, 1.0, 0.0)
    torch.testing.assert_close(found, torch.tensor([once, once, 2 * once]))
    # Cosines of the teacher 0, 3/5 and 4/5, of the student 1, -1 and 1; each occurs twice in nine.
    cosines = [(1.0, 0.0), (-1.0, 0.6), (1.0, 0.8)]
    expected = [2 * huber(own - theirs) / 9 for own, theirs in cosines]
    torch.testing.assert_close(rkd_loss(student, teacher, 0.0, 1.0), torch.tensor(expected))


def test_the_mean_is_the_authors_value() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(7, 3, dtype=torch.float64, generator=generator)
    teacher = torch.randn(7, 5, dtype=torch.float64, generator=generator)
    student[4] = student[2]  # two samples at one place
    of_pairs, of_triples = by_loops(student.tolist(), teacher.tolist())
    found = rkd_loss(student, teacher, 25.0, 50.0)
    assert found.dtype == torch.float64
    expected = torch.tensor(25.0 * of_pairs + 50.0 * of_triples, dtype=torch.float64)
    torch.testing.assert_close(found.mean(), expected)


def test_the_gradient_is_that_of_the_values() -> None:
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(4, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    teacher = torch.randn(4, 2, dtype=torch.float64, generator=generator)

    def loss(features: Tensor) -> Tensor:
        return rkd_loss(features, teacher, 25.0, 50.0)

    assert torch.autograd.gradcheck(loss, (student,))


def test_zero_where_relations_agree() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(9, 4)
    turned = torch.linalg.qr(torch.randn(6, 6))[0][:4]
    student = (3.0 * teacher @ turned + 2.0).requires_grad_()  # other size, scale, axes and place
    loss = rkd_loss(student, teacher, 25.0, 50.0)
    loss.sum().backward()
    assert loss.abs().max() < 1e-5
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-3


def test_samples_at_one_place_have_finite_gradients() -> None:
    for student in (torch.zeros(5, 3), torch.ones(1, 3), torch.zeros(0, 3)):
        student.requires_grad_()
        loss = rkd_loss(student, torch.randn(len(student), 4), 25.0, 50.0)
        loss.sum().backward()
        assert torch.isfinite(loss).all()
        assert student.grad is not None
        assert (student.grad == 0).all()
