"""Weight histograms against hand-computed and float64 values; layers by tap."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from krscale.errors import KrscaleError
from krscale.knowledge.aggregation import student_tap
from krscale.knowledge.parameters import (
    ParameterSource,
    histogram_cross_entropy,
    layers_by_tap,
    mix_histograms,
    weight_histogram,
    weight_histograms,
)


def linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight = nn.Parameter(weight)
    return layer


def reference(weights: list[Tensor], num_bins: int) -> Tensor:
    """Share every standardised weight by a triangular kernel, in float64 and N x bins work."""
    centres = torch.linspace(-4.0, 4.0, num_bins, dtype=torch.float64)
    spacing = 8.0 / (num_bins - 1)
    counts = torch.zeros(num_bins, dtype=torch.float64)
    for weight in weights:
        flat = weight.double().flatten()
        flat = (flat - flat.mean()) / flat.std(correction=0)
        distance = (flat.clamp(-4.0, 4.0).unsqueeze(1) - centres).abs() / spacing
        counts = counts + (1.0 - distance).clamp_min(0.0).sum(dim=0)
    return counts / sum(weight.numel() for weight in weights)


def test_by_hand() -> None:
    # Mean 2, standard deviation 1: standardised to -1 and 1, which are centres of 9 bins.
    histogram = weight_histogram([linear(torch.tensor([[1.0, 3.0]]))], num_bins=9)
    assert histogram.tolist() == pytest.approx([0, 0, 0, 0.5, 0, 0.5, 0, 0, 0])
    # With 5 bins (-4, -2, 0, 2, 4) each weight lies halfway between two centres.
    histogram = weight_histogram([linear(torch.tensor([[1.0, 3.0]]))], num_bins=5)
    assert histogram.tolist() == pytest.approx([0, 0.25, 0.5, 0.25, 0])


@pytest.mark.parametrize("num_bins", [5, 32, 33])
def test_value_and_gradient_equal_float64(num_bins: int) -> None:
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(3, 4, 3)
    layers = [conv, linear(5 + 0.1 * torch.randn(6, 7, generator=generator) ** 3)]
    pull = torch.randn(num_bins, generator=generator)
    histogram = weight_histogram(layers, num_bins)
    exact = [layer.weight.detach().double().requires_grad_() for layer in layers]
    expected = reference(exact, num_bins)
    torch.testing.assert_close(histogram, expected.float(), rtol=1e-4, atol=1e-6)
    gradients = torch.autograd.grad((histogram * pull).sum(), [m.weight for m in layers])
    expected_gradients = torch.autograd.grad((expected * pull).sum(), exact)
    for got, want in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(got, want.float(), rtol=1e-3, atol=1e-5)


def test_layers_are_mixed_by_parameter_count() -> None:
    generator = torch.Generator().manual_seed(0)
    small = linear(torch.randn(1, 4, generator=generator))
    large = linear(torch.randn(3, 4, generator=generator))
    mixed = 0.25 * weight_histogram([small]) + 0.75 * weight_histogram([large])
    torch.testing.assert_close(weight_histogram([small, large]), mixed)


def test_groups_at_once_equal_one_by_one() -> None:
    layers = [nn.Linear(4, 3), nn.Linear(3, 5), nn.Conv2d(1, 2, 3)]
    groups: list[list[nn.Module]] = [[layers[0]], [], [layers[1], layers[2]]]
    together = weight_histograms(groups)
    torch.testing.assert_close(together, torch.stack([weight_histogram(g) for g in groups]))
    assert together.sum(dim=1).tolist() == pytest.approx([1.0, 0.0, 1.0])
    assert weight_histogram([]).sum() == 0.0


def test_scale_shift_and_order_do_not_matter() -> None:
    weight = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    plain = weight_histogram([linear(weight)])
    torch.testing.assert_close(weight_histogram([linear(3 * weight + 2)]), plain)
    torch.testing.assert_close(weight_histogram([linear(weight.flip(0))]), plain)


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_a_constant_layer_is_safe(value: float) -> None:
    layer = linear(torch.full((3, 4), value))
    histogram = weight_histogram([layer], num_bins=9)
    assert histogram.tolist() == pytest.approx([0, 0, 0, 0, 1, 0, 0, 0, 0])
    histogram[3].backward()
    assert layer.weight.grad is not None
    assert torch.isfinite(layer.weight.grad).all()


def test_a_weight_that_is_nan_shows_in_the_histogram() -> None:
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight[0, 0] = torch.nan
    assert weight_histogram([layer]).isnan().any()


def test_outliers_fall_into_the_outermost_bins() -> None:
    weight = torch.zeros(1, 101)
    weight[0, 0] = 1.0  # ten standard deviations from the mean
    histogram = weight_histogram([linear(weight)], num_bins=9)
    assert histogram[-1].item() == pytest.approx(1 / 101)
    assert histogram.sum().item() == pytest.approx(1.0, abs=1e-5)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(
            nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)), nn.ReLU()
        )
        self.layer10 = nn.Sequential(nn.Conv2d(4, 8, 1))
        self.head = nn.Linear(8, 3)


def names(net: nn.Module, paths: tuple[str, ...]) -> list[list[str]]:
    by_module = {module: name for name, module in net.named_modules()}
    return [[by_module[layer] for layer in layers] for layers in layers_by_tap(net, paths)]


def test_layers_by_tap() -> None:
    net = Net()
    # The name `layer10` begins with `layer1`, but the layer is not inside it.
    assert names(net, ("layer1.0", "layer10.0")) == [
        ["stem", "layer1.0.0", "layer1.0.2"],
        ["layer10.0"],
        ["head"],
    ]
    assert names(net, ("layer1", "layer10"))[0] == ["stem", "layer1.0.0", "layer1.0.2"]
    assert names(net, ("stem", "norm", "layer1.1")) == [
        ["stem"],
        [],
        ["layer1.0.0", "layer1.0.2"],
        ["layer10.0", "head"],
    ]
    assert names(net, ()) == [["stem", "layer1.0.0", "layer1.0.2", "layer10.0", "head"]]


def test_mix_histograms_by_hand() -> None:
    histograms = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.0, 0.0]])
    sizes = torch.tensor([30.0, 10.0, 5.0, 0.0])
    mixed = mix_histograms(histograms, sizes, ((0, 2), (2, 3), (3, 4)))
    assert mixed.tolist() == [[0.75, 0.25], [0.5, 0.5], [0.0, 0.0]]


def test_cross_entropy_is_least_where_histograms_agree() -> None:
    teacher = torch.tensor([0.1, 0.2, 0.7, 0.0])
    logits = teacher.clamp_min(1e-8).log().requires_grad_()
    at_teacher = histogram_cross_entropy(logits.softmax(dim=0), teacher)
    (gradient,) = torch.autograd.grad(at_teacher, logits)
    assert gradient.abs().max() < 1e-6
    for other in ([0.2, 0.2, 0.6, 0.0], [0.0, 0.0, 0.0, 1.0]):
        assert histogram_cross_entropy(torch.tensor(other), teacher) > at_teacher + 1e-3


def test_cross_entropy_by_hand() -> None:
    apart = histogram_cross_entropy(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]))
    # In both histograms, one hundredth is spread over the two bins.
    assert apart.item() == pytest.approx(-0.995 * math.log(0.005) - 0.005 * math.log(0.995))


def source(student: Net, groups: tuple[tuple[int, int], ...]) -> ParameterSource:
    torch.manual_seed(7)
    teacher = layers_by_tap(Net(), ("layer1", "layer10"))
    histograms = weight_histograms(teacher).detach()
    sizes = torch.tensor([float(sum(w.weight.numel() for w in group)) for group in teacher])
    ends = [student_tap(group, len(groups), 2) for group in range(1, len(groups) + 1)]
    return ParameterSource(groups, histograms, sizes, layers_by_tap(student, ("layer1",)), ends)


def test_descent_draws_the_student_to_the_teacher() -> None:
    for groups in (((0, 3),), ((0, 1), (1, 3)), ((0, 1), (1, 2), (2, 3))):
        torch.manual_seed(0)
        student = Net()
        pull = source(student, groups)
        optimiser = torch.optim.Adam(student.parameters(), lr=0.01)
        least = histogram_cross_entropy(pull.targets, pull.targets).mean().item()
        first = pull().item()
        for _ in range(40):
            optimiser.zero_grad()
            pull().backward()
            optimiser.step()
        assert pull().item() - least < 0.7 * (first - least)


def test_groups_take_the_students_layers_at_their_depth() -> None:
    student = Net()
    first, second = layers_by_tap(student, ("layer1",))
    assert source(student, ((0, 3),)).layers == ((*first, *second),)
    assert source(student, ((0, 1), (1, 3))).layers == (first, second)
    # Three groups on two taps: the last two groups share the student's last tap.
    assert source(student, ((0, 1), (1, 2), (2, 3))).layers == (first, second, second)


def test_own_weights_give_no_gradient() -> None:
    torch.manual_seed(0)
    student = Net()
    layers = layers_by_tap(student, ("layer1",))
    sizes = torch.tensor([float(sum(w.weight.numel() for w in group)) for group in layers])
    pull = ParameterSource(
        ((0, 1), (1, 2)), weight_histograms(layers).detach(), sizes, layers, (1, 2)
    )
    pull().backward()
    for layer in (*layers[0], *layers[1]):
        assert layer.weight.grad.abs().max() < 1e-5


def test_the_students_layers_stay_its_own() -> None:
    pull = source(Net(), ((0, 3),))
    assert list(pull.parameters()) == []
    assert list(pull.children()) == []
    assert pull.state_dict() == {}


def test_without_layers_it_says_so() -> None:
    with pytest.raises(KrscaleError, match="no group"):
        ParameterSource(((0, 1),), torch.ones(1, 4), torch.ones(1), ((),), (1,))


class Counting(nn.Module):
    """Computes its weight whenever it is read, as layers with a parametrization do."""

    def __init__(self) -> None:
        super().__init__()
        self.num_reads = 0

    @property
    def weight(self) -> Tensor:
        self.num_reads += 1
        return torch.ones(2, 3)


def test_a_weight_is_computed_once() -> None:
    """In training, spectral norm does one iteration step at each read."""
    layers = [Counting(), Counting()]
    weight_histograms([layers[:1], layers[1:], layers[1:]], 5)  # two groups share a tap
    assert [layer.num_reads for layer in layers] == [1, 1]
