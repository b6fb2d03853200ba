"""The KR objective against float64."""

from __future__ import annotations

import pytest
import torch

from krscale.knowledge.loss import kr_loss, kr_terms
from krscale.knowledge.recoding import recode, recode_gap

WEIGHTS = torch.tensor([0.2, 0.0, 1.0])


def test_value_and_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, 8, generator=generator).requires_grad_()
    targets = torch.randn(5, 3, 8, generator=generator).softmax(dim=-1)
    loss = kr_loss(logits, targets, WEIGHTS, 4.0, 0.5)
    log_p = (logits.detach().double() / 4.0).log_softmax(dim=-1)
    divergences = (targets.double() * (targets.double().log() - log_p)).sum(dim=-1)
    expected = (16.0 * divergences @ WEIGHTS.double()).float()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    expected = 16.0 / 4.0 * WEIGHTS.view(3, 1) * recode_gap(log_p.exp() - targets, 0.5)
    torch.testing.assert_close(gradient, expected.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_zero_where_they_agree(sparsity: float) -> None:
    logits = 5 * torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(1))
    logits[0, 0, 1:] = -torch.inf  # a confident teacher has classes of probability 0
    logits = logits.clamp_min(-1e4).requires_grad_()
    loss = kr_loss(logits, (logits / 4.0).softmax(dim=-1), torch.ones(3), 4.0, sparsity)
    assert loss.abs().max() < 1e-4
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.abs().max() < 1e-5


def test_active_classes_of_every_group() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, 8, generator=generator)
    targets = torch.randn(5, 3, 8, generator=generator).softmax(dim=-1)
    _, active = kr_terms(logits, targets, WEIGHTS, 4.0, 0.5)
    assert torch.equal(active, recode((logits / 4.0).softmax(dim=-1) - targets, 0.5)[1])
    assert active.float().mean() < 8


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_empty_batch(sparsity: float) -> None:
    logits = torch.zeros(0, 3, 8, requires_grad=True)
    loss = kr_loss(logits, torch.zeros(0, 3, 8), WEIGHTS, 4.0, sparsity)
    assert loss.shape == (0,)
    loss.sum().backward()
