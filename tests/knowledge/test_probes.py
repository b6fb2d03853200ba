"""Probes against scikit-learn in float64; information gain against hand-computed values."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from krscale.errors import KrscaleError, UserError
from krscale.knowledge.probes import (
    MAX_FEATURES,
    LinearProbe,
    Probes,
    fit_probe,
    fitting_grid,
    information_gain,
    read_tap,
)
from krscale.knowledge.taps import TapOutputs, pool


def clusters(num_samples: int = 300, num_classes: int = 4, size: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(num_samples) % num_classes
    centres = torch.randn(num_classes, size, generator=generator)
    noise = torch.randn(num_samples, size, generator=generator)
    scale = torch.logspace(-3, 3, size)  # features of very different size
    return (centres[labels] + noise) * scale + 10 * scale, labels


def reference(features: Tensor, labels: Tensor, weight_decay: float) -> Tensor:
    """Probabilities by scikit-learn's solver in float64 on standardised features."""
    exact = features.double()
    exact = (exact - exact.mean(dim=0)) / exact.std(dim=0, correction=0)
    strength = 1 / (len(labels) * weight_decay)
    solver = LogisticRegression(C=strength, solver="newton-cg", tol=1e-10, max_iter=10_000)
    solver.fit(exact.numpy(), labels.numpy())
    return torch.tensor(solver.predict_proba(exact.numpy()))


@pytest.mark.parametrize("weight_decay", [1e-3, 1e-1])
def test_equals_scikit_learn(weight_decay: float) -> None:
    features, labels = clusters()
    probe = fit_probe(features, labels, 4, weight_decay=weight_decay)
    logits = features.double() @ probe.weight.double().T + probe.bias.double()
    expected = reference(features, labels, weight_decay)
    # The stored weights are fp32, and the features' means are ten times their deviations.
    torch.testing.assert_close(logits.softmax(dim=-1), expected, rtol=0, atol=5e-5)
    assert probe.weight.dtype == probe.bias.dtype == torch.float32


def test_same_input_same_probe() -> None:
    features, labels = clusters()
    torch.manual_seed(1)
    first = fit_probe(features, labels, 4)
    torch.manual_seed(2)
    second = fit_probe(features, labels, 4)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)


@pytest.mark.parametrize("constant", [0.0, 7.0, 1e6, 0.1])
def test_a_constant_feature_weighs_nothing(constant: float) -> None:
    features, labels = clusters()
    column = torch.full((len(labels), 1), constant)
    column[::2] = column[::2].nextafter(torch.tensor(2.0 * constant))  # rounding, no information
    with_constant = torch.cat([features, column], dim=1)
    probe = fit_probe(with_constant, labels, 4)
    plain = fit_probe(features, labels, 4)
    assert (probe.weight[:, -1] == 0).all()
    torch.testing.assert_close(probe.weight[:, :-1], plain.weight, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(probe.bias, plain.bias, rtol=1e-5, atol=1e-5)


def test_sums_in_another_order_give_the_same_probe() -> None:
    """Processors sum in different orders; here samples and features are reordered instead."""
    features, labels = clusters()
    plain = fit_probe(features, labels, 4)
    samples = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    columns = torch.tensor([3, 0, 5, 1, 4, 2])
    other = fit_probe(features[samples][:, columns], labels[samples], 4)
    torch.testing.assert_close(other.weight, plain.weight[:, columns], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(other.bias, plain.bias, rtol=1e-6, atol=1e-6)


def test_autocast_changes_nothing() -> None:
    features, labels = clusters()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        probe = fit_probe(features, labels, 4)
    assert torch.equal(probe.weight, fit_probe(features, labels, 4).weight)


def test_absent_classes_are_learnt_to_be_rare() -> None:
    features, labels = clusters()
    probe = fit_probe(features, labels, 6)
    probabilities = (features @ probe.weight.T + probe.bias).softmax(dim=-1)
    assert torch.isfinite(probabilities).all()
    assert probabilities[:, 4:].max() < 0.01


def test_works_where_gradients_are_off_and_leaves_none() -> None:
    features, labels = clusters()
    with torch.no_grad():
        probe = fit_probe(features, labels, 4)
    assert probe.weight.abs().sum() > 0
    assert not probe.weight.requires_grad


def test_refuses_what_cannot_be_fitted() -> None:
    features, labels = clusters()
    features[0, 0] = torch.nan
    with pytest.raises(UserError, match="NaN"):
        fit_probe(features, labels, 4)
    with pytest.raises(UserError, match="0 samples"):
        fit_probe(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 4)


def example() -> tuple[list[LinearProbe], TapOutputs]:
    generator = torch.Generator().manual_seed(0)
    probes = [
        LinearProbe(torch.randn(3, n, generator=generator), torch.randn(3, generator=generator))
        for n in (4, 5)
    ]
    features = (
        torch.randn(2, 4, 3, 3, generator=generator),
        torch.randn(2, 7, 5, generator=generator),
    )
    return probes, TapOutputs(torch.randn(2, 3, generator=generator), features)


def test_probes_read_every_tap() -> None:
    fitted, outputs = example()
    probes = Probes((4, 5), 3)
    probes.load(fitted)
    first = outputs.features[0].double().mean(dim=(2, 3)) @ fitted[0].weight.double().T
    second = outputs.features[1].double().mean(dim=1) @ fitted[1].weight.double().T
    expected = torch.stack(
        [first + fitted[0].bias, second + fitted[1].bias, outputs.logits.double()], dim=1
    )
    torch.testing.assert_close(probes(outputs), expected.float())
    assert not any(p.requires_grad for p in probes.parameters())


def test_probes_come_back_from_their_state() -> None:
    fitted, outputs = example()
    probes, twin = Probes((4, 5), 3), Probes((4, 5), 3)
    probes.load(fitted)
    twin.load_state_dict(probes.state_dict())
    assert torch.equal(twin(outputs), probes(outputs))


def test_probes_keep_fp32_under_autocast() -> None:
    fitted, outputs = example()
    probes = Probes((4, 5), 3)
    probes.load(fitted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        said = probes(outputs)
    assert torch.equal(said, probes(outputs))


def test_a_teacher_with_one_tap_needs_no_probe() -> None:
    logits = torch.randn(2, 3)
    assert torch.equal(Probes((), 3)(TapOutputs(logits, ())), logits.unsqueeze(1))


def test_probes_refuse_another_number_of_taps() -> None:
    _, outputs = example()
    with pytest.raises(KrscaleError, match="1 probes cannot read 2"):
        Probes((4,), 3)(outputs)


def test_information_gain_by_hand() -> None:
    labels = torch.tensor([0, 1, 0, 1])
    right = torch.nn.functional.one_hot(labels, 2).float()
    sure = 100.0 * right
    three_quarters = math.log(3.0) * right  # probability 0.75 for the label
    guess = torch.zeros(4, 2)
    wrong = 100.0 * (1 - right)
    gain = information_gain(torch.stack([sure, three_quarters, guess, wrong], dim=1), labels)
    expected = [1.0, 1.0 + math.log(0.75) / math.log(2.0), 0.0, 0.0]
    torch.testing.assert_close(gain, torch.tensor(expected), rtol=1e-6, atol=1e-6)


def test_guessing_by_frequency_gains_nothing() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    by_frequency = torch.tensor([0.75, 0.25]).log().expand(4, 1, 2)
    assert information_gain(by_frequency, labels).item() == pytest.approx(0.0, abs=1e-6)
    uniform = torch.zeros(4, 1, 2)  # worse than the frequencies: clamped
    assert information_gain(uniform, labels).item() == 0.0


def test_labels_of_one_class_carry_no_information() -> None:
    gain = information_gain(torch.randn(5, 3, 4), torch.full((5,), 2))
    assert gain.tolist() == [0.0, 0.0, 0.0]


def test_information_gain_needs_samples() -> None:
    with pytest.raises(UserError, match="held-out"):
        information_gain(torch.zeros(0, 2, 3), torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 5, 7), (9, 4), (6,)])
def test_a_grid_of_one_cell_reads_the_mean_over_all_positions(shape: tuple[int, ...]) -> None:
    feature = torch.randn(4, *shape)
    assert torch.equal(read_tap(feature, 1), pool(feature))
    outputs = TapOutputs(torch.randn(4, 5), (feature,))
    one, pooled = Probes([pool(feature).shape[1]], 5, 1), Probes([pool(feature).shape[1]], 5)
    one.load_state_dict(pooled.state_dict())
    assert torch.equal(one(outputs), pooled(outputs))


def test_what_was_read_on_a_grid_is_read_no_more() -> None:
    feature = torch.randn(4, 3, 8, 8)
    probes = Probes([48], 5, 4)
    read = TapOutputs(torch.randn(4, 5), (read_tap(feature, 4),))
    assert torch.equal(probes(read), probes(TapOutputs(read.logits, (feature,))))


def test_a_grid_tells_classes_that_differ_in_where_alone() -> None:
    """Two classes, one channel: active on the left or on the right, by the same amount."""
    labels = torch.arange(400) % 2
    feature = 0.3 * torch.rand(400, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    feature[labels == 0, :, :, :2] += 1.0
    feature[labels == 1, :, :, 2:] += 1.0
    gains = []
    for grid in (1, 2):
        read = read_tap(feature, grid)
        probe = fit_probe(read[:200], labels[:200], 2)
        logits = read[200:] @ probe.weight.T + probe.bias
        gains.append(float(information_gain(logits[:, None], labels[200:])))
    assert gains[0] < 0.1
    assert gains[1] > 0.9


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((16, 16, 16), 4),
        ((16, 2, 2), 4),  # no finer than the map: all cells are positions
        ((MAX_FEATURES // 16, 8, 8), 4),
        ((MAX_FEATURES // 16 + 1, 8, 8), 3),
        ((MAX_FEATURES, 8, 8), 1),
        ((2 * MAX_FEATURES, 8, 8), 1),
        ((49, 64), 4),
        ((49, MAX_FEATURES // 4), 2),
        ((3 * MAX_FEATURES,), 1),
    ],
)
def test_many_channels_are_read_on_a_coarser_grid(shape: tuple[int, ...], grid: int) -> None:
    assert fitting_grid(shape, 4) == grid
    size = read_tap(torch.zeros(1, *shape), 4).shape[1]
    assert size == read_tap(torch.zeros(1, *shape), grid).shape[1]
    assert size <= MAX_FEATURES or grid == 1
