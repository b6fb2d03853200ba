"""The methods on the logits against naive float64 formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from krscale.config.methods import LabelSmoothingSettings
from krscale.knowledge.taps import TapOutputs
from krscale.methods.base import MethodContext
from krscale.methods.batch import Batch
from krscale.methods.dist import dist_loss
from krscale.methods.dkd import dkd_loss
from krscale.methods.kd import kd_loss
from krscale.methods.label_smoothing import LabelSmoothing
from krscale.methods.logit_standardisation import standardise, standardised_kd_loss

TEMPERATURES = [1.0, 4.0]


def example(num_classes: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 5, num_classes, generator=generator)
    return logits[0], logits[1], torch.randint(0, num_classes, (5,), generator=generator)


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    powers = (logits.double() / temperature).exp()
    return powers / powers.sum(dim=-1, keepdim=True)


def divergence(q: Tensor, p: Tensor) -> Tensor:
    return (q * (q / p).log()).sum(dim=-1)


def assert_equal(loss: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(loss, expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kd(temperature: float) -> None:
    student, teacher, _ = example()
    p, q = probabilities(student, temperature), probabilities(teacher, temperature)
    assert_equal(kd_loss(student, teacher, temperature), temperature**2 * divergence(q, p))


@pytest.mark.parametrize(
    "loss",
    [
        lambda student, teacher, labels: kd_loss(student, teacher, 4.0),
        lambda student, teacher, labels: dkd_loss(student, teacher, labels, 4.0, 1.0, 1.0),
        lambda student, teacher, labels: dist_loss(student, teacher, 4.0, 1.0, 1.0),
        lambda student, teacher, labels: standardised_kd_loss(student, teacher, 4.0),
    ],
    ids=["kd", "dkd", "dist", "logit_standardisation"],
)
def test_the_teachers_logits_get_no_gradient(loss: Callable[..., Tensor]) -> None:
    student, teacher, labels = example()
    student.requires_grad_()
    teacher.requires_grad_()
    loss(student, teacher, labels).sum().backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize("num_classes", [2, 6])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_dkd(temperature: float, num_classes: int) -> None:
    student, teacher, labels = example(num_classes)
    expected = []
    for p, q, label in zip(
        probabilities(student, temperature),
        probabilities(teacher, temperature),
        labels.tolist(),
        strict=True,
    ):
        others = [k for k in range(num_classes) if k != label]
        binary = [torch.stack([x[label], x[others].sum()]) for x in (q, p)]
        rest = [x[others] / x[others].sum() for x in (q, p)]
        expected.append(0.7 * divergence(*binary) + 3.0 * divergence(*rest))
    loss = dkd_loss(student, teacher, labels, temperature, 0.7, 3.0)
    assert_equal(loss, temperature**2 * torch.stack(expected))


def test_dkd_rejoins_to_kd() -> None:
    """Weighting the other classes by the teacher's mass on them gives KD (paper, equation 5)."""
    student, teacher, labels = example()
    mass = 1 - probabilities(teacher, 4.0).gather(1, labels.unsqueeze(1)).squeeze(1)
    target = dkd_loss(student, teacher, labels, 4.0, 1.0, 0.0)
    others = dkd_loss(student, teacher, labels, 4.0, 0.0, 1.0)
    assert_equal(kd_loss(student, teacher, 4.0), target + mass * others)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_dist(temperature: float) -> None:
    student, teacher, _ = example()
    p, q = probabilities(student, temperature), probabilities(teacher, temperature)

    def correlation(a: Tensor, b: Tensor) -> Tensor:
        return torch.corrcoef(torch.stack([a, b]))[0, 1]

    inter = torch.stack([1 - correlation(a, b) for a, b in zip(p, q, strict=True)])
    intra = torch.stack([1 - correlation(a, b) for a, b in zip(p.T, q.T, strict=True)]).mean()
    loss = dist_loss(student, teacher, temperature, 0.7, 3.0)
    assert_equal(loss, temperature**2 * (0.7 * inter + 3.0 * intra))


def test_dist_gradient_is_that_of_correlation() -> None:
    student, teacher, _ = example()
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(dist_loss(student, teacher, 1.0, 1.0, 1.0).sum(), student)
    exact = student.detach().double().requires_grad_()
    p, q = exact.softmax(dim=-1), probabilities(teacher, 1.0)
    expected = sum(
        (1 - torch.cosine_similarity(p - p.mean(d, True), q - q.mean(d, True), dim=d, eps=0)).sum()
        * scale
        for d, scale in ((1, 1.0), (0, 5 / 6))  # five samples carry the mean over six classes
    )
    (expected_gradient,) = torch.autograd.grad(expected, exact)
    assert_equal(gradient, expected_gradient)


def test_dist_of_one_sample_has_no_relation_within_classes() -> None:
    student, teacher, _ = example()
    loss = dist_loss(student[:1].requires_grad_(), teacher[:1], 1.0, 0.0, 1.0)
    assert loss.tolist() == [0.0]


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_logit_standardisation(temperature: float) -> None:
    student, teacher, _ = example()
    scores = [
        (x.double() - x.double().mean(-1, True)) / x.double().std(-1, correction=1, keepdim=True)
        for x in (student, teacher)
    ]
    p, q = (probabilities(x, temperature) for x in scores)
    loss = standardised_kd_loss(student, teacher, temperature)
    assert_equal(loss, temperature**2 * divergence(q, p))


def test_logit_standardisation_ignores_scale() -> None:
    student, teacher, _ = example()
    loss = standardised_kd_loss(student, teacher, 4.0)
    assert_equal(standardised_kd_loss(30 * student + 5, 0.1 * teacher, 4.0), loss)


def test_standardising_by_hand() -> None:
    # Mean 2; squares 4 + 1 + 0 + 9 = 14 over K - 1 = 3: the deviation is sqrt(14 / 3).
    scores = standardise(torch.tensor([[0.0, 1.0, 2.0, 5.0]]))
    expected = torch.tensor([[-2.0, -1.0, 0.0, 3.0]]) / math.sqrt(14 / 3)
    torch.testing.assert_close(scores, expected)
    # Mean 0; squares 1 + 0 + 1 = 2 over 2: already of deviation 1.
    own = torch.tensor([[-1.0, 0.0, 1.0]])
    torch.testing.assert_close(standardise(own), own)
    # Against equal scores of the teacher, q = 1/3: T^2 * sum q log(q / p) at T = 1.
    loss = standardised_kd_loss(own, torch.zeros(1, 3), 1.0)
    by_hand = math.log(math.exp(-1) + 1 + math.exp(1)) - math.log(3)
    torch.testing.assert_close(loss, torch.tensor([by_hand]))


def authors(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The formula of the authors' code, in float64: mean over classes, unbiased deviation."""
    scores = [
        (x - x.mean(-1, True)) / (1e-7 + ((x - x.mean(-1, True)) ** 2).sum(-1, True).div(
            x.shape[-1] - 1).sqrt())
        for x in (student, teacher)
    ]  # fmt: skip
    p, q = ((s / temperature).softmax(-1) for s in scores)
    return temperature**2 * divergence(q, p)


@pytest.mark.parametrize("num_classes", [3, 10, 100])
@pytest.mark.parametrize("spread", [1e-4, 1e-3, 1e-2, 1.0, 30.0])
def test_logit_standardisation_learns_as_its_authors_at_any_spread(
    num_classes: int, spread: float
) -> None:
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(2, 5, num_classes, generator=generator, dtype=torch.float64)
    exact = (spread * noise[0]).float().double().requires_grad_()
    (wanted,) = torch.autograd.grad(authors(exact, noise[1], 2.0).sum(), exact)
    student = exact.detach().float().requires_grad_()
    loss = standardised_kd_loss(student, noise[1].float(), 2.0)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert torch.cosine_similarity(gradient.double(), wanted, dim=-1).min() > 1 - 1e-4
    lengths = gradient.double().norm(dim=-1) / wanted.norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones(5, dtype=torch.float64), rtol=1e-3, atol=0.0)


def test_gradient_of_logit_standardisation_in_float64() -> None:
    generator = torch.Generator().manual_seed(4)
    student, teacher = torch.randn(2, 4, 7, generator=generator, dtype=torch.float64)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: standardised_kd_loss(z, teacher, 2.0), (student,))


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-8, 1e-4, 1.0, 1e4])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_two_classes_leave_logit_standardisation_the_order_alone(
    scale: float, offset: float
) -> None:
    order = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
    student = (offset + scale * order).requires_grad_()
    distinct = bool((student[:, 0] != student[:, 1]).all())
    for teacher, agrees in ((3.0 * order, True), (-0.01 * order, False)):
        loss = standardised_kd_loss(student, teacher, 2.0)
        (gradient,) = torch.autograd.grad(loss.sum(), student)
        assert gradient.abs().max() == 0.0
        # At T = 2 the scores +-1/sqrt(2) are log-odds of 1/sqrt(2): KL = odds * tanh(odds / 2).
        odds = 1 / math.sqrt(2.0)
        apart = 4.0 * odds * math.tanh(odds / 2.0)
        if distinct:
            expected = torch.full((2,), 0.0 if agrees else apart)
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
        assert torch.isfinite(loss).all()


@pytest.mark.parametrize("num_classes", [3, 10])
def test_logit_standardisation_of_equal_logits_is_finite(num_classes: int) -> None:
    student = torch.full((2, num_classes), 5.0, requires_grad=True)
    loss = standardised_kd_loss(student, torch.arange(2.0 * num_classes).view(2, -1), 2.0)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() <= 2.0 / 1e-7  # T / SMALL, times a difference of probabilities


def test_label_smoothing() -> None:
    student, _, labels = example()
    settings = LabelSmoothingSettings(label_smoothing=0.3)
    method = LabelSmoothing(MethodContext.without_teacher(6), settings)
    batch = Batch(torch.zeros(5, 1), labels, torch.arange(5), None, 5)
    smoothed = 0.7 * torch.eye(6)[labels].double() + 0.3 / 6
    expected = -(smoothed * probabilities(student, 1.0).log()).sum(dim=-1)
    assert_equal(method(TapOutputs(student, ()), batch)["ce"], expected)
