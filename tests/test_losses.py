"""Losses for users' own loops: called alike, equal to the methods', with examples that run."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import krscale
from krscale import losses
from krscale.config import DistillConfig
from krscale.errors import UserError
from krscale.knowledge.taps import TapOutputs
from krscale.methods import POSTERIORS, Batch, MethodContext, build_method

ON_LOGITS = ("kd", "dkd", "dist", "logit_standardisation", "kr", "label_smoothing")

ON_STAGES = ("attention_transfer", "reviewkd")


def example(num_classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 7, num_classes, generator=generator)
    return logits[0], logits[1], torch.arange(7) % num_classes


def loss_named(name: str) -> Callable[..., Tensor]:
    function: Callable[..., Tensor] = getattr(losses, name)
    return function


def test_each_has_an_example() -> None:
    # They are run by tests/test_examples.py.
    assert all(">>>" in str(loss_named(name).__doc__) for name in losses.__all__)
    assert krscale.losses is losses


@pytest.mark.parametrize("name", losses.__all__)
def test_all_are_called_alike(name: str) -> None:
    parameters = list(inspect.signature(loss_named(name)).parameters.values())
    kinds = [parameter.kind for parameter in parameters]
    assert [p.name.partition("_")[0] for p in parameters[:3]] == ["student", "teacher", "labels"]
    assert all(kind is inspect.Parameter.KEYWORD_ONLY for kind in kinds[3:])
    settings = parameters[3:]
    assert all(p.default is not inspect.Parameter.empty for p in settings)
    assert "arXiv" in str(loss_named(name).__doc__)


@pytest.mark.parametrize("name", ON_LOGITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_number_a_sample_and_no_gradient_for_the_teacher(name: str, dtype: torch.dtype) -> None:
    student, teacher, labels = example()
    student, teacher = student.to(dtype).requires_grad_(), teacher.to(dtype).requires_grad_()
    loss = loss_named(name)(student, teacher, labels)
    assert loss.shape == (7,)
    assert loss.dtype == torch.float32
    loss.sum().backward()
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("name", POSTERIORS)
def test_defaults_and_mathematics_are_those_of_the_method(name: str) -> None:
    student, teacher, labels = example()
    method = build_method(name, MethodContext.without_teacher(5), DistillConfig())
    batch = Batch(torch.zeros(7, 1), labels, torch.arange(7), teacher[:, None], 7)
    weight = getattr(method.settings_class(), f"{name}_weight")
    expected = method(TapOutputs(student, ()), batch)[name]
    assert torch.equal(weight * loss_named(name)(student, teacher, labels), expected)


@pytest.mark.parametrize("sparsity", [0.0, 0.6])
def test_kr_is_kd_with_a_sparser_gradient(sparsity: float) -> None:
    student, teacher, labels = example()
    student.requires_grad_()
    loss = losses.kr(student, teacher, labels, sparsity=sparsity)
    torch.testing.assert_close(loss, losses.kd(student, teacher), rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    (full,) = torch.autograd.grad(losses.kd(student, teacher).sum(), student)
    torch.testing.assert_close(gradient.norm(dim=1), full.norm(dim=1), rtol=1e-4, atol=1e-5)
    assert ((gradient == 0).sum(dim=1) > 0).all() == (sparsity > 0)


@pytest.mark.parametrize("name", [n for n in ON_LOGITS if n != "label_smoothing"])
def test_zero_where_they_agree(name: str) -> None:
    student, _, labels = example()
    assert loss_named(name)(student, student.clone(), labels).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["pkt", "rkd", "fitnet", "attention_transfer", "reviewkd"])
def test_losses_of_features_are_zero_where_they_agree(name: str) -> None:
    maps = torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    features: Any = maps.flatten(1) if name in ("pkt", "rkd") else maps
    features = [maps] if name in ON_STAGES else features
    assert loss_named(name)(features, features).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda s, t, y: losses.kd(s, t[:1]), r"one shape.*\[7, 5\] and \[1, 5\]"),
        (lambda s, t, y: losses.kd(s[:, :4], t), r"one shape.*\[7, 4\] and \[7, 5\]"),
        (
            lambda s, t, y: losses.kr(s[0], t[0]),
            r"logits are \[B, K\] of two classes or more, not \[5\]",
        ),
        (lambda s, t, y: losses.dkd(s, t, y[:2]), r"7 samples.*shape \[2\]"),
        (lambda s, t, y: losses.dkd(s, t, y.float()), "float32"),
        (lambda s, t, y: losses.label_smoothing(s, None, s), r"shape \[7, 5\]"),
        (lambda s, t, y: losses.pkt(s, t[:3]), "one batch"),
        (lambda s, t, y: losses.rkd(s, t[:3]), "one batch"),
        (lambda s, t, y: losses.fitnet(s, t[:1]), "one shape"),
        (lambda s, t, y: losses.reviewkd(s, t), "a list"),
        (lambda s, t, y: losses.reviewkd([maps(s)], [maps(t)[:1]]), "one batch"),
        (lambda s, t, y: losses.attention_transfer([maps(s)], [maps(t)[:1]]), "one batch"),
        (lambda s, t, y: losses.attention_transfer(s, t), "a list"),
        (lambda s, t, y: losses.attention_transfer([s], []), "1 and 0"),
        (lambda s, t, y: losses.attention_transfer([s], [t]), "maps"),
        (lambda s, t, y: losses.crd(s, t, y[:2]), "7 samples"),
    ],
)
def test_what_would_be_broadcast_is_refused(call: Callable[..., Tensor], said: str) -> None:
    with pytest.raises(UserError, match=said):
        call(*example())


OTHER_THAN_FLOATS = [
    lambda value: value.argmax(dim=-1), lambda value: value > 0, lambda value: value.to(torch.int8),
    lambda value: value.to(torch.complex64), lambda value: value.numpy(),
    lambda value: value.tolist(), lambda value: None,
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        (name, argument)
        for name in losses.__all__
        for argument in ((0,) if name == "label_smoothing" else (0, 1))
    ],
)
@pytest.mark.parametrize("other", OTHER_THAN_FLOATS)
def test_what_is_no_tensor_of_floats_is_refused(
    name: str, argument: int, other: Callable[[Tensor], Any]
) -> None:
    """Class numbers would be used as logits, and an imaginary part would be dropped."""
    student, teacher, labels = example()
    maps_are_wanted = name in (*ON_STAGES, "fitnet")
    arguments: list[Any] = [maps(v) if maps_are_wanted else v for v in (student, teacher)]
    arguments[argument] = other(arguments[argument])
    if name in ON_STAGES:
        arguments = [[value] for value in arguments]
    with pytest.raises(UserError, match=r"a tensor is needed|are of floating point, not"):
        loss_named(name)(*arguments, labels)


@pytest.mark.parametrize("name", ["dkd", "label_smoothing", "crd", "kd", "dist"])
@pytest.mark.parametrize("labels", [[0] * 7, "0123401", torch.zeros(7), torch.zeros(7, 1).long()])
def test_labels_are_class_numbers(name: str, labels: Any) -> None:
    student, teacher, _ = example()
    with pytest.raises(UserError, match="one int64 class number for each of the 7 samples"):
        loss_named(name)(student, teacher, labels)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda s, t, y: losses.kr(s, t, sparsity=1.0), "losses.kr: sparsity"),
        (lambda s, t, y: losses.kr(s, t, sparsity=30), "losses.kr: sparsity"),
        (lambda s, t, y: losses.kd(s, t, temperature=0.0), "losses.kd: temperature"),
        (lambda s, t, y: losses.dist(s, t, temperature=-1.0), "losses.dist: temperature"),
        (lambda s, t, y: losses.dkd(s, t, y, target_weight=float("nan")), "dkd: target_weight"),
        (lambda s, t, y: losses.label_smoothing(s, None, y, label_smoothing=1.5), "smoothing: lab"),
        (lambda s, t, y: losses.crd(s, t, y, temperature=0.0), "losses.crd: temperature"),
        (lambda s, t, y: losses.attention_transfer([maps(s)], [maps(t)], reduction="avg"), "avg"),
        (lambda s, t, y: losses.rkd(s, t, angle_weight=-1.0), "losses.rkd: angle_weight"),
    ],
)
def test_settings_that_an_experiment_refuses_are_refused(
    call: Callable[..., Tensor], named: str
) -> None:
    with pytest.raises(UserError, match=named):
        call(*example())


def maps(logits: Tensor) -> Tensor:
    return logits[:, :4].reshape(-1, 1, 2, 2)


@pytest.mark.parametrize("name", losses.__all__)
def test_autocast_changes_no_loss(name: str) -> None:
    student, teacher, labels = example(num_classes=64)
    if name in (*ON_STAGES, "fitnet"):
        student, teacher = maps(student), maps(teacher)
    pair: Any = ([student], [teacher]) if name in ON_STAGES else (student, teacher)
    expected = loss_named(name)(*pair, labels)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss_named(name)(*pair, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["kd", "dkd", "kr"])
def test_a_class_that_the_teacher_excludes_counts_nothing(name: str) -> None:
    student, teacher, labels = example()
    teacher[:, 4] = -torch.inf
    labels = labels.clamp_max(3)
    loss = loss_named(name)(student, teacher, labels)
    assert torch.isfinite(loss).all()
    if name != "dkd":
        wanted = torch.nn.functional.kl_div(
            (student / 4).log_softmax(1), (teacher / 4).softmax(1), reduction="none"
        ).sum(dim=1)
        torch.testing.assert_close(loss, 16 * wanted)


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("name", [n for n in ON_LOGITS if n != "label_smoothing"])
def test_probabilities_are_no_logits(name: str, role: str) -> None:
    student, teacher, labels = example()
    given = {"student": student, "teacher": teacher}
    loss = loss_named(name)
    logarithms = {**given, role: given[role].log_softmax(dim=1)}
    torch.testing.assert_close(
        loss(*logarithms.values(), labels), loss(*given.values(), labels), rtol=1e-4, atol=1e-5
    )
    for dtype in (torch.float32, torch.bfloat16):
        probabilities = {**given, role: given[role].softmax(dim=1).to(dtype)}
        with pytest.raises(UserError, match=f"{role}_logits are probabilities"):
            loss(*probabilities.values(), labels)


@pytest.mark.parametrize("loss", [losses.dkd, losses.label_smoothing])
@pytest.mark.parametrize("label", [3, -2])
def test_labels_out_of_range_are_refused(loss: Any, label: int) -> None:
    logits = torch.randn(2, 3)
    name = loss.__name__
    with pytest.raises(UserError, match=rf"losses\.{name}: label {label} is out of range"):
        loss(logits, logits, torch.tensor([0, label]))


@pytest.mark.parametrize("loss", [losses.dkd, losses.label_smoothing])
def test_labels_are_asked_for_where_they_are_needed(loss: Any) -> None:
    logits = torch.randn(2, 3)
    with pytest.raises(UserError, match=rf"losses\.{loss.__name__}: labels are .*, not NoneType"):
        loss(logits, logits, None)


def test_one_class_is_refused() -> None:
    with pytest.raises(UserError, match=r"losses\.kd: logits are \[B, K\] of two classes or more"):
        losses.kd(torch.zeros(2, 1), torch.zeros(2, 1))


@pytest.mark.parametrize("loss", [losses.kd, losses.dkd, losses.kr])
def test_a_class_that_both_exclude(loss: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1])
    student, teacher = torch.randn(2, 2, 3, generator=generator)
    settings = {"sparsity": 0.0} if loss is losses.kr else {}
    expected = loss(student, teacher, labels, **settings)
    excluded = torch.full((2, 1), -math.inf)
    wide = torch.cat([student, excluded], 1).requires_grad_()
    found = loss(wide, torch.cat([teacher, excluded], 1), labels, **settings)
    torch.testing.assert_close(found.detach(), expected)
    (gradient,) = torch.autograd.grad(found.sum(), wide)
    assert gradient[:, 3].tolist() == [0.0, 0.0]


def test_standardised_logits_are_finite() -> None:
    logits = torch.tensor([[0.0, 1.0, -math.inf]])
    with pytest.raises(UserError, match="student_logits hold infinite values"):
        losses.logit_standardisation(logits, torch.zeros(1, 3))


@pytest.mark.parametrize("temperature", ["4", True, None])
def test_settings_are_numbers(temperature: object) -> None:
    with pytest.raises(UserError, match=r"losses\.kd: temperature: "):
        losses.kd(torch.zeros(2, 3), torch.zeros(2, 3), temperature=temperature)  # type: ignore[arg-type]
