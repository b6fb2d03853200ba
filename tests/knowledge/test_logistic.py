"""Logistic regression: the gradient by autograd is zero at the returned weights for any data."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from krscale.errors import KrscaleError, UserError
from krscale.knowledge.logistic import BIAS_PENALTY, GRADIENT_TOLERANCE, fit_logistic

WEIGHT_DECAY = 1e-3


def standardised(features: Tensor) -> Tensor:
    """Return `[N, F + 1]`: standardised features (0 if constant) and a column of ones."""
    features = features.double() - features.double().mean(dim=0)
    features = features / features.std(dim=0, correction=0).clamp_min(1e-12)
    return torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], dim=1)


def gradient_at(weights: Tensor, inputs: Tensor, labels: Tensor, weight_decay: float) -> Tensor:
    weights = weights.clone().requires_grad_()
    loss = F.cross_entropy(inputs @ weights.T, labels)
    loss = loss + 0.5 * weight_decay * weights[:, :-1].square().sum()
    loss = loss + 0.5 * BIAS_PENALTY / len(labels) * weights[:, -1].square().sum()
    return torch.autograd.grad(loss, weights)[0]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def heavy_tails() -> Tensor:
    return noise(200, 5) / noise(200, 5, seed=1)


TWO_FAR_APART = torch.cat([noise(50, 3) + 100, noise(50, 3) - 100])
CASES = {
    "one sample": (noise(1, 5), torch.tensor([2]), 4),
    "two samples": (noise(2, 5), torch.tensor([2, 0]), 4),
    "one class in all": (noise(9, 5), torch.zeros(9, dtype=torch.int64), 1),
    "one class of five has samples": (noise(90, 5), torch.zeros(90, dtype=torch.int64), 5),
    "separable": (TWO_FAR_APART, torch.arange(100) // 50, 2),
    "heavy tails": (heavy_tails(), (heavy_tails()[:, 0].abs() * 3).long().clamp(max=6), 7),
    "more features than samples": (noise(20, 100), torch.arange(20) % 3, 3),
    "more classes than samples": (noise(20, 5), torch.arange(20), 30),
    "constant features alone": (torch.ones(30, 4), torch.arange(30) % 4, 4),
    "one sample stands out": (F.pad(torch.ones(1, 3), (0, 0, 0, 99)), torch.arange(100) % 2, 2),
}


@pytest.mark.parametrize("weight_decay", [1e-5, WEIGHT_DECAY, 10.0])
@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_zero_at_the_optimum(name: str, weight_decay: float) -> None:
    features, labels, num_classes = CASES[name]
    inputs = standardised(features)
    weights = fit_logistic(inputs, labels, num_classes, weight_decay)
    gradient = gradient_at(weights, inputs, labels, weight_decay)
    assert gradient.norm() <= 1.1 * GRADIENT_TOLERANCE
    # The loss does not determine this sum; the penalty makes it 0.
    assert weights.sum(dim=0).abs().max() < 1e-10


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 8), st.integers(1, 7))
def test_the_gradient_is_zero_for_any_data(
    seed: int, samples: int, size: int, classes: int
) -> None:
    features = noise(samples, size, seed=seed) * noise(size, seed=seed + 1).mul(3).exp()
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (samples,), generator=generator)
    inputs = standardised(features)
    weights = fit_logistic(inputs, labels, classes, WEIGHT_DECAY)
    assert gradient_at(weights, inputs, labels, WEIGHT_DECAY).norm() <= 1.1 * GRADIENT_TOLERANCE


def test_two_classes_and_one_feature_by_hand() -> None:
    # Three of four samples at +1 have label 1, one of four at -1. Weights are (-w, w) and biases 0,
    # so that p(1 | x) = sigmoid(2 w x), and bisection finds the w of least loss.
    inputs = torch.tensor([[1.0, 1.0]] * 4 + [[-1.0, 1.0]] * 4, dtype=torch.float64)
    labels = torch.tensor([1, 1, 1, 0, 0, 0, 0, 1])
    weights = fit_logistic(inputs, labels, 2, 0.1)
    low, high = 0.0, 10.0
    for _ in range(200):
        middle = (low + high) / 2
        # d/dw of mean cross-entropy + 0.1 / 2 * 2 w^2, for the weights (-w, w).
        slope = 2 * (torch.sigmoid(torch.tensor(2 * middle, dtype=torch.float64)) - 0.75)
        low, high = (middle, high) if slope + 0.2 * middle < 0 else (low, middle)
    expected = torch.tensor([[-low, 0.0], [low, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-9)


def test_twin_features_share_their_weight() -> None:
    features, labels = noise(200, 3), torch.arange(200) % 4
    features = features + noise(4, 3, seed=2)[labels]
    twins = torch.cat([features, features[:, :1]], dim=1)
    weights = fit_logistic(standardised(twins), labels, 4, WEIGHT_DECAY)
    assert weights[:, 0].abs().max() > 0.1
    torch.testing.assert_close(weights[:, 0], weights[:, 3], rtol=0, atol=1e-9)


def test_an_optimum_that_is_not_reached_is_an_error() -> None:
    inputs, labels = standardised(noise(100, 3)), torch.arange(100) % 4
    with pytest.raises(UserError, match="did not reach its optimum: its gradient"):
        fit_logistic(inputs, labels, 4, WEIGHT_DECAY, max_steps=1)


@pytest.mark.parametrize("weight_decay", [0.0, -1.0, float("nan")])
def test_without_weight_decay_there_may_be_no_optimum(weight_decay: float) -> None:
    with pytest.raises(KrscaleError, match="weight decay above 0"):
        fit_logistic(standardised(noise(10, 3)), torch.arange(10) % 2, 2, weight_decay)
