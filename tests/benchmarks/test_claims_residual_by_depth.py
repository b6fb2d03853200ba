"""Residual by depth, against torch's own KL and by hand."""

import math

import pytest
import torch
from parts.claims.tracing import residual_by_depth
from torch.distributions import Categorical, kl_divergence

from krscale.errors import KrscaleError


def test_compares_taps_of_equal_relative_depth() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(50, 4, 6, generator=generator)
    student = torch.randn(50, 2, 6, generator=generator)
    found = residual_by_depth(teacher, student, temperature=2.0)
    assert list(found) == [0.25, 0.5, 0.75, 1.0]
    for tap, student_tap in enumerate((0, 0, 1, 1)):
        q, p = (
            Categorical(logits=x.double() / 2.0) for x in (teacher[:, tap], student[:, student_tap])
        )
        expected = kl_divergence(q, p).mean().item()
        assert found[(tap + 1) / 4] == pytest.approx(expected, rel=1e-6)


def test_by_hand() -> None:
    teacher = torch.log(torch.tensor([[[0.5, 0.5]]]))
    student = torch.log(torch.tensor([[[0.9, 0.1]]]))
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert residual_by_depth(teacher, student) == {1.0: pytest.approx(expected, rel=1e-5)}


def test_zero_where_they_agree_up_to_a_constant_and_finite_at_extremes() -> None:
    said = 1e4 * torch.randn(8, 3, 5, generator=torch.Generator().manual_seed(1))
    assert list(residual_by_depth(said, said + 7.0).values()) == pytest.approx([0.0] * 3, abs=1e-3)
    assert all(map(math.isfinite, residual_by_depth(said, -said).values()))


def test_other_samples_or_classes_are_refused() -> None:
    with pytest.raises(KrscaleError, match="same samples and classes"):
        residual_by_depth(torch.zeros(4, 3, 5), torch.zeros(4, 3, 6))
