"""Functions that the losses of several methods share."""

from __future__ import annotations

import math

import pytest
import torch

from krscale.methods.numerics import at_least_fp32, kl_divergence, without_autocast


def test_the_divergence_by_hand_with_an_excluded_class() -> None:
    log_q = torch.tensor([[math.log(0.5), math.log(0.5), -math.inf]])
    log_p = torch.tensor([[math.log(0.25), math.log(0.75), -math.inf]], requires_grad=True)
    divergence = kl_divergence(log_q, log_p)
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert divergence.tolist() == pytest.approx([expected])
    divergence.sum().backward()
    assert log_p.grad is not None
    assert log_p.grad.tolist() == [[-0.5, -0.5, 0.0]]


def test_precision_is_raised_and_never_lowered() -> None:
    for given, kept in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        assert at_least_fp32(torch.zeros(1, dtype=given)).dtype == kept


def test_products_keep_their_precision_under_autocast() -> None:
    factors = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (factors @ factors).dtype == torch.bfloat16
        with without_autocast(factors):
            assert (factors @ factors).dtype == torch.float32
    with without_autocast(factors.to("meta")):
        pass
