"""The invariants of the sparse recoding penalty, against a float64 reference written here."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from krscale.knowledge.loss import kr_loss
from krscale.knowledge.recoding import recode, recode_gap

SPARSITIES = [0.1, 0.3, 0.5, 0.7, 0.9, 0.99]
SIZES = [2, 3, 10, 45, 300]


def random_gap(num_classes: int, rows: int = 64, seed: int = 0, sharpness: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(2, rows, num_classes, generator=generator) * sharpness
    first, second = draw.softmax(dim=-1)
    return first - second


def reference(gap: Tensor, sparsity: float) -> tuple[Tensor, Tensor]:
    """Recode by the definition, in float64 and quadratic time; also the margin of each decision.

    An entry is dropped when all entries of its sign that are not larger hold at most the share
    `sparsity` of the sign's mass.
    """
    gap = gap.double()
    balanced = torch.zeros_like(gap)
    margin = torch.full_like(gap, torch.inf)
    for sign in (1.0, -1.0):
        mass = (gap * sign).clamp_min(0.0)
        total = mass.sum(dim=-1, keepdim=True)
        not_larger = mass.unsqueeze(-2) <= mass.unsqueeze(-1)
        share = (mass.unsqueeze(-2) * not_larger).sum(dim=-1) / total
        kept = torch.where((mass > 0) & (share > sparsity), mass, 0.0)
        balanced += sign * kept / kept.sum(dim=-1, keepdim=True)
        margin = torch.where(mass > 0, (share - sparsity).abs(), margin)
    norms = [values.pow(2).sum(dim=-1, keepdim=True).sqrt() for values in (gap, balanced)]
    return balanced * norms[0] / norms[1], margin


@pytest.mark.parametrize("num_classes", SIZES)
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_equals_the_definition_in_float64(num_classes: int, sparsity: float) -> None:
    gap = random_gap(num_classes)
    expected, margin = reference(gap, sparsity)
    clear = (margin > 1e-5).all(dim=-1)  # rounding may decide the others either way
    assert clear.sum() >= 56
    torch.testing.assert_close(
        recode_gap(gap, sparsity)[clear], expected[clear].float(), rtol=1e-4, atol=1e-7
    )


def test_no_sparsity_changes_nothing() -> None:
    gap = random_gap(45)
    assert torch.equal(recode_gap(gap, 0.0), gap)


def test_hand_computed() -> None:
    gap = torch.tensor([0.4, 0.1, 0.1, -0.3, -0.2, -0.1])
    # Positive mass 0.6: the two 0.1 are a third of it. Negative: 0.1 is a sixth, 0.1 + 0.2 a half.
    # Squares: 0.32 of the gap, 1 + 0.36 + 0.16 = 1.52 of what is kept, each sign's mass set to 1.
    kept = torch.tensor([1.0, 0.0, 0.0, -0.6, -0.4, 0.0])
    torch.testing.assert_close(recode_gap(gap, 0.4), kept * (0.32 / 1.52) ** 0.5)
    # Dropping one of two equal entries would be allowed at 0.2, but both must be kept.
    kept = torch.tensor([4 / 6, 1 / 6, 1 / 6, -0.6, -0.4, 0.0])
    torch.testing.assert_close(recode_gap(gap, 0.2), kept * (0.32 / (0.5 + 0.52)) ** 0.5)


@pytest.mark.parametrize("num_classes", SIZES)
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_sums_to_zero_and_keeps_the_norm(num_classes: int, sparsity: float) -> None:
    gap = random_gap(num_classes, sharpness=3.0)
    recoded = recode_gap(gap, sparsity)
    assert recoded.dtype == torch.float32
    assert recoded.sum(dim=-1).abs().max() <= 1e-6
    torch.testing.assert_close(recoded.norm(dim=-1), gap.norm(dim=-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sparsity", [*SPARSITIES, 0.999999, 1.0 - 1e-12])
def test_each_sign_keeps_its_largest_entry(sparsity: float) -> None:
    gap = random_gap(45)
    recoded = recode_gap(gap, sparsity)
    rows = torch.arange(len(gap))
    assert (recoded[rows, gap.argmax(dim=-1)] > 0).all()
    assert (recoded[rows, gap.argmin(dim=-1)] < 0).all()


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_drops_the_smallest_and_at_most_the_share(sparsity: float) -> None:
    gap = random_gap(100)
    recoded = recode_gap(gap, sparsity)
    for sign in (1.0, -1.0):
        mass = (gap * sign).clamp_min(0.0)
        kept = recoded * sign > 0
        dropped = (mass > 0) & ~kept
        largest_dropped = mass.masked_fill(~dropped, 0.0).amax(dim=-1)
        smallest_kept = mass.masked_fill(~kept, torch.inf).amin(dim=-1)
        assert (largest_dropped < smallest_kept).all()
        assert (mass.masked_fill(~dropped, 0.0).sum(-1) <= (sparsity + 1e-5) * mass.sum(-1)).all()


@pytest.mark.parametrize("num_classes", [10, 100])
def test_active_classes_fall_as_sparsity_grows(num_classes: int) -> None:
    gap = random_gap(num_classes)
    counts = torch.stack([recode(gap, s)[1] for s in (0.0, *SPARSITIES)])
    assert (counts[0] == num_classes).all()
    assert (counts.diff(dim=0) <= 0).all()
    assert (counts[-1] >= 2).all()
    up_to_070 = counts[:-2].float().mean(dim=1)  # above 0.7, rows of few classes are at two already
    assert (up_to_070.diff() < -0.5).all()


def test_active_classes_counts_the_kept() -> None:
    gap = torch.tensor([[0.4, 0.1, 0.1, -0.3, -0.2, -0.1], [0.0] * 6])
    assert recode(gap, 0.4)[1].tolist() == [3, 0]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 40), st.integers(0, 10_000), st.floats(0.0, 0.95), st.sampled_from([0.1, 1, 10])
)
def test_does_not_depend_on_the_order_of_classes(
    num_classes: int, seed: int, sparsity: float, sharpness: float
) -> None:
    gap = random_gap(num_classes, rows=4, seed=seed, sharpness=sharpness)
    # Multiples of 1/1024 sum exactly in fp32, so no decision depends on the order of summation;
    # many are equal, so ties occur.
    gap = (gap * 1024).round() / 1024
    order = torch.randperm(num_classes, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        recode_gap(gap, sparsity)[:, order], recode_gap(gap[:, order], sparsity), rtol=1e-5, atol=0
    )


def test_leading_shapes_and_empty_batches() -> None:
    gap = random_gap(10, rows=12)
    shaped = recode_gap(gap.view(3, 4, 10), 0.5)
    assert torch.equal(shaped.view(12, 10), recode_gap(gap, 0.5))
    assert recode_gap(torch.zeros(0, 3, 10), 0.5).shape == (0, 3, 10)
    assert recode(torch.zeros(0, 3, 10), 0.5)[1].shape == (0, 3)


def recoded_cross_entropy(
    logits: Tensor, targets: Tensor, temperature: float, sparsity: float
) -> Tensor:
    """The objective of one group of weight 1, as a cross-entropy at the temperature."""
    one = kr_loss(logits[:, None], targets[:, None], torch.ones(1), temperature, sparsity)
    wide = targets.detach().float()
    return one / temperature**2 - torch.special.xlogy(wide, wide).sum(dim=-1)


def gradient(logits: Tensor, targets: Tensor, temperature: float, sparsity: float) -> Tensor:
    leaf = logits.detach().clone().requires_grad_()
    recoded_cross_entropy(leaf, targets, temperature, sparsity).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def random_pair(num_classes: int = 20, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = 3.0 * torch.randn(2, 32, num_classes, generator=generator)
    return draw[0], (draw[1] / 4.0).softmax(dim=-1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_without_sparsity_it_is_cross_entropy(temperature: float) -> None:
    logits, targets = random_pair()
    exact = logits.double().requires_grad_()
    expected = -(targets.double() * (exact / temperature).log_softmax(dim=-1)).sum(dim=-1)
    expected.sum().backward()
    assert exact.grad is not None
    value = recoded_cross_entropy(logits, targets, temperature, 0.0)
    torch.testing.assert_close(value, expected.detach().float())
    torch.testing.assert_close(
        gradient(logits, targets, temperature, 0.0), exact.grad.float(), rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("sparsity", [0.3, 0.7])
def test_value_is_cross_entropy_and_gradient_is_recoded(
    temperature: float, sparsity: float
) -> None:
    logits, targets = random_pair()
    plain = recoded_cross_entropy(logits, targets, temperature, 0.0)
    assert torch.equal(recoded_cross_entropy(logits, targets, temperature, sparsity), plain)
    gap = (logits.double() / temperature).softmax(dim=-1) - targets.double()
    expected, margin = reference(gap, sparsity)
    assert (margin > 1e-5).all()
    torch.testing.assert_close(
        gradient(logits, targets, temperature, sparsity),
        (expected / temperature).float(),
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_gradient_is_zero_where_student_and_teacher_agree(sparsity: float) -> None:
    logits, _ = random_pair()
    targets = (logits / 4.0).softmax(dim=-1)
    assert gradient(logits, targets, 4.0, sparsity).abs().max() < 1e-6


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_finite_for_any_dtype_and_extreme_logits(
    sparsity: float, dtype: torch.dtype, scale: float
) -> None:
    logits, targets = random_pair()
    logits = (logits.clamp(-5, 5) * scale).to(dtype).requires_grad_()
    extreme = torch.eye(20).repeat(2, 1)[:32]
    for soft_targets in (targets.to(dtype), extreme):
        loss = recoded_cross_entropy(logits, soft_targets, 1.0, sparsity)
        assert loss.dtype == torch.float32
        (grad,) = torch.autograd.grad(loss.sum(), logits)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(grad).all()


def test_targets_get_no_gradient() -> None:
    logits, targets = random_pair()
    targets.requires_grad_()
    logits.requires_grad_()
    recoded_cross_entropy(logits, targets, 4.0, 0.5).sum().backward()
    assert targets.grad is None


def test_a_nan_is_not_hidden() -> None:
    logits, targets = random_pair()
    logits[3, 4] = torch.nan
    loss = recoded_cross_entropy(logits, targets, 4.0, 0.5)
    assert torch.isnan(loss[3])
    assert torch.isfinite(loss).sum() == 31


def test_compiles_as_one_graph() -> None:
    logits, targets = random_pair()
    compiled = torch.compile(recoded_cross_entropy, backend="aot_eager", fullgraph=True)
    leaf = logits.clone().requires_grad_()
    loss = compiled(leaf, targets, 4.0, 0.5)
    loss.sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(loss, recoded_cross_entropy(logits, targets, 4.0, 0.5))
    torch.testing.assert_close(leaf.grad, gradient(logits, targets, 4.0, 0.5))
