"""What holds for every registered method, whatever it computes."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from krscale.config import DistillConfig, TrainConfig
from krscale.errors import KrscaleError
from krscale.knowledge.features import (
    KINDS,
    FeatureKind,
    Shapes,
    feature_shapes,
    read_features,
)
from krscale.knowledge.parameters import layers_by_tap, weight_histograms
from krscale.knowledge.taps import TapOutputs
from krscale.methods import (
    METHODS,
    POSTERIORS,
    Batch,
    Learner,
    LogitMethod,
    Method,
    MethodContext,
    build_method,
    method_settings,
    takes_mixed_labels,
    takes_unlabelled,
)
from krscale.methods.batch import UNLABELLED, Mixture
from krscale.methods.learner import LearnerOutput

NUM_CLASSES, NUM_TAPS, PATHS = 6, 4, ("0", "1")
STUDENT_STAGES = ((4, 8, 8), (5, 8, 8))
TEACHER_STAGES = ((7, 8, 8), (9, 8, 8))

COMBINED = "+".join(["kr", *POSTERIORS])

CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in METHODS),
    ("at", {"at_reduction": "sum"}),
    ("kr", {"granularity": 1}),
    ("kr", {"granularity": "layer", "sparsity": 0.0, "mixing": "geometric"}),
    ("kr", {"auxiliary_schedule": "falling", "where_weight": 2.0, "where_schedule": "falling"}),
    ("kr", {"auxiliary_schedule": "coarsening", "where_weight": 2.0}),
    (COMBINED, {"parameter_weight": 0.3}),
]

every_method = pytest.mark.parametrize(
    ("name", "changes"), CASES, ids=[f"{n}{i}" for i, (n, _) in enumerate(CASES)]
)


def student_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 5, 3, padding=1), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, NUM_CLASSES),
    )


def context(student: nn.Module) -> MethodContext:
    torch.manual_seed(1)
    teacher = nn.ModuleList(nn.Linear(7, 9) for _ in range(NUM_TAPS))
    return MethodContext(
        num_classes=NUM_CLASSES,
        num_teacher_taps=NUM_TAPS,
        stage_ends=(2, 3, 4),
        information_gain=torch.tensor([0.1, 0.3, 0.5, 0.8]),
        student_shapes=((4, 8, 8), (5, 8, 8)),
        student_layers=layers_by_tap(student, PATHS),
        teacher_histograms=weight_histograms([[layer] for layer in teacher]).detach(),
        teacher_layer_sizes=torch.full((NUM_TAPS,), 63.0),
        student_stage_shapes=STUDENT_STAGES,
        student_stage_ends=(1, 2, 3),
        teacher_shapes=teacher_shapes(),
    )


@cache
def teacher_shapes() -> dict[FeatureKind, Shapes]:
    """Return the shapes of all features; finding them runs on meta tensors, which is slow."""
    return {kind: feature_shapes(kind, TEACHER_STAGES) for kind in KINDS}


def make(name: str, changes: dict[str, Any]) -> Learner:
    student = student_network()
    settings = {**DistillConfig().model_dump(), **changes}
    method = build_method(name, context(student), settings)
    read = method.reads(PATHS, PATHS)
    on_logits = not method.needs_teacher or isinstance(method, LogitMethod)
    assert bool(read.taps) != (on_logits or changes.get("granularity") == 1)
    return Learner(student, PATHS, method, read.stages)


def make_batch(size: int, scale: float = 3.0) -> Batch:
    generator = torch.Generator().manual_seed(2)
    other = torch.Generator().manual_seed(4)
    stages = [scale * torch.randn(size, *shape, generator=other) for shape in TEACHER_STAGES]
    return Batch(
        images=torch.randn(size, 1, 8, 8, generator=generator),
        labels=torch.randint(0, NUM_CLASSES, (size,), generator=generator),
        samples=torch.arange(size),
        tap_logits=scale * torch.randn(size, NUM_TAPS, NUM_CLASSES, generator=generator),
        global_size=max(size, 1),
        teacher_features={kind: read_features(kind, stages) for kind in KINDS},
    )


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def assert_terms(terms: dict[str, Tensor], size: int) -> None:
    assert terms
    for name, term in terms.items():
        assert term.shape == (size,), name
        assert term.dtype == torch.float32, name
        assert torch.isfinite(term).all(), name


@every_method
def test_terms_are_one_fp32_number_a_sample(name: str, changes: dict[str, Any]) -> None:
    output = make(name, changes)(make_batch(7))
    assert_terms(output.terms, 7)
    assert "ce" in output.terms
    assert output.logits.shape == (7, NUM_CLASSES)
    for value in output.diagnostics.values():
        assert value.shape == ()
        assert not value.requires_grad


@every_method
def test_every_part_of_the_student_learns(name: str, changes: dict[str, Any]) -> None:
    learner = make(name, changes)
    total(learner(make_batch(7)).terms).backward()
    for parameter_name, parameter in learner.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@every_method
def test_nothing_is_read_back_to_the_host(name: str, changes: dict[str, Any]) -> None:
    """Meta tensors hold no values, so whatever makes a step wait for the device raises an error."""
    learner, batch = make(name, changes).to("meta"), make_batch(7)
    moved = {
        field: value.to("meta") for field, value in vars(batch).items() if torch.is_tensor(value)
    }
    features = {
        kind: tuple(feature.to("meta") for feature in of_kind)
        for kind, of_kind in batch.teacher_features.items()
    }
    on_meta = replace(batch, **moved, teacher_features=features)
    # Bypass the learner's own forward, as meta tensors have no autocast.
    terms = learner.method(learner.tapped(on_meta.images), on_meta)
    total(terms).backward()
    assert all(value.is_meta for value in learner.method.diagnostics().values())


@every_method
def test_the_teacher_gets_no_gradient(name: str, changes: dict[str, Any]) -> None:
    batch = make_batch(7)
    assert batch.tap_logits is not None
    batch.tap_logits.requires_grad_()
    features = [f.requires_grad_() for of_kind in batch.teacher_features.values() for f in of_kind]
    total(make(name, changes)(batch).terms).backward()
    assert batch.tap_logits.grad is None
    assert all(feature.grad is None for feature in features)


@every_method
def test_distillation_needs_the_teacher(name: str, changes: dict[str, Any]) -> None:
    learner = make(name, changes)
    alone = replace(make_batch(7), tap_logits=None)
    if learner.method.needs_teacher:
        with pytest.raises(KrscaleError, match="tap_logits"):
            learner(alone)
    else:
        assert torch.equal(total(learner(alone).terms), total(learner(make_batch(7)).terms))


@every_method
def test_an_empty_share_of_a_batch(name: str, changes: dict[str, Any]) -> None:
    learner = make(name, changes)
    output = learner(make_batch(0))
    assert_terms(output.terms, 0)
    assert all(torch.isfinite(value) for value in output.diagnostics.values())
    total(output.terms).backward()
    for parameter in learner.parameters():
        assert parameter.grad is not None  # data-parallel training waits for every gradient
        assert (parameter.grad == 0).all()


@every_method
def test_losses_are_fp32_under_bf16_autocast(name: str, changes: dict[str, Any]) -> None:
    learner = make(name, changes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = learner(make_batch(7))
    assert_terms(output.terms, 7)
    assert output.logits.dtype == torch.float32
    total(output.terms).backward()
    for parameter in learner.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
    exact = learner(make_batch(7)).terms
    for term in exact:
        torch.testing.assert_close(output.terms[term], exact[term], rtol=0.1, atol=0.1)


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_finite_at_extreme_logits(
    name: str, changes: dict[str, Any], dtype: torch.dtype, scale: float
) -> None:
    method = make(name, changes).method
    batch = make_batch(7, scale)
    generator = torch.Generator().manual_seed(3)
    logits = (scale * torch.randn(7, NUM_CLASSES, generator=generator)).to(dtype)
    labels = torch.cat([logits[:3].argmax(dim=-1), logits[3:].argmin(dim=-1)])
    batch = replace(batch, labels=labels)  # confidently right, and confidently wrong
    logits.requires_grad_()
    features = tuple(
        (scale * torch.randn(7, *shape, generator=generator)).to(dtype) for shape in STUDENT_STAGES
    )
    terms = method(TapOutputs(logits, features, features), batch)
    assert_terms(terms, 7)
    total(terms).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def gradient_at_agreement(method: Method, batch: Batch, term: str) -> tuple[Tensor, Tensor]:
    """The term and its gradient to student logits that equal the teacher's up to a constant."""
    assert batch.tap_logits is not None
    logits = (batch.tap_logits[:, -1] + 2.0).requires_grad_()
    features = (torch.zeros(7, 4), torch.zeros(7, 5))
    stages = tuple(torch.zeros(7, *shape) for shape in STUDENT_STAGES)
    value = method(TapOutputs(logits, features, stages), batch)[term]
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    return value, gradient


@pytest.mark.parametrize("name", POSTERIORS)
@pytest.mark.parametrize("scale", [0.0, 3.0, 30.0])
def test_logit_terms_are_zero_where_student_and_teacher_agree(name: str, scale: float) -> None:
    value, gradient = gradient_at_agreement(make(name, {}).method, make_batch(7, scale), name)
    assert value.abs().max() < 1e-4
    assert gradient.abs().max() < 1e-4


@pytest.mark.parametrize("name", POSTERIORS)
def test_logit_terms_are_positive_elsewhere(name: str) -> None:
    assert (make(name, {})(make_batch(7)).terms[name] > 1e-3).all()


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("mixing", ["arithmetic", "geometric"])
def test_kr_gives_no_gradient_where_student_and_teacher_agree(sparsity: float, mixing: str) -> None:
    changes = {"granularity": 1, "sparsity": sparsity, "mixing": mixing}
    batch = make_batch(7)
    assert batch.tap_logits is not None
    all_taps_alike = batch.tap_logits[:, -1:].expand(-1, NUM_TAPS, -1)
    batch = replace(batch, tap_logits=all_taps_alike)
    _, gradient = gradient_at_agreement(make("kr", changes).method, batch, "kr")
    assert gradient.abs().max() < 1e-5


@every_method
def test_samples_do_not_depend_on_their_order(name: str, changes: dict[str, Any]) -> None:
    learner = make(name, changes)
    batch = make_batch(7)
    assert batch.tap_logits is not None
    order = torch.tensor([3, 1, 6, 0, 5, 2, 4])
    shuffled = Batch(
        batch.images[order],
        batch.labels[order],
        order,
        batch.tap_logits[order],
        7,
        {kind: tuple(f[order] for f in of) for kind, of in batch.teacher_features.items()},
    )
    terms, others = learner(batch).terms, learner(shuffled).terms
    for term in terms:
        torch.testing.assert_close(terms[term][order], others[term], rtol=1e-4, atol=1e-5)


@every_method
def test_samples_are_alone_in_every_method_but_those_that_accumulation_names(
    name: str, changes: dict[str, Any]
) -> None:
    """`train.gradient_accumulation` lists the methods that compare the samples of a batch."""
    learner, batch = make(name, changes).eval(), make_batch(7)
    whole = learner(batch).terms
    parts = LearnerOutput.joined([learner(batch.rows(0, 3)), learner(batch.rows(3, 7))]).terms
    meaning = TrainConfig.model_fields["gradient_accumulation"].description or ""
    for term, values in whole.items():
        alone = torch.allclose(values, parts[term], rtol=1e-4, atol=1e-5)
        assert alone != (f"`{term}`" in meaning), term


def mixture_of(batch: Batch, labels: Tensor) -> Mixture:
    return Mixture(labels, torch.linspace(0.1, 0.9, len(labels)))


@every_method
def test_mixed_labels_change_the_labels_cross_entropy_or_are_refused(
    name: str, changes: dict[str, Any]
) -> None:
    learner, batch = make(name, changes), make_batch(7)
    others = (batch.labels + 1) % NUM_CLASSES
    mixed = replace(batch, mixture=mixture_of(batch, others))
    assert learner.method.takes_mixed_labels == takes_mixed_labels(name)
    if not takes_mixed_labels(name):
        with pytest.raises(KrscaleError, match="needs one class for every image"):
            learner(mixed)
        return
    own, other = (learner(b).terms for b in (batch, replace(batch, labels=others)))
    assert mixed.mixture is not None
    weights = mixed.mixture.weights
    for term, values in learner(mixed).terms.items():
        expected = weights * own[term] + (1 - weights) * other[term] if term == "ce" else own[term]
        torch.testing.assert_close(values, expected, msg=term)


@every_method
def test_two_images_of_one_class_have_its_label(name: str, changes: dict[str, Any]) -> None:
    learner, batch = make(name, changes), make_batch(7)
    mixed = replace(batch, mixture=mixture_of(batch, batch.labels))
    if not takes_mixed_labels(name):  # even these are refused
        with pytest.raises(KrscaleError, match="needs one class for every image"):
            learner(mixed)
        return
    for term, values in learner(mixed).terms.items():
        torch.testing.assert_close(values, learner(batch).terms[term], msg=term)


def test_methods_of_ones_own_refuse_mixed_labels_until_they_say_otherwise() -> None:
    assert not Method.takes_mixed_labels
    assert {name for name in METHODS if not takes_mixed_labels(name)} == {"dkd", "crd"}


@every_method
def test_the_student_keeps_nothing_of_the_method(name: str, changes: dict[str, Any]) -> None:
    learner = make(name, changes)
    learner(make_batch(7))
    assert list(learner.student.state_dict()) == list(student_network().state_dict())
    owned = [n for n, _ in learner.method.named_parameters()]
    assert all(n.startswith("heads.") for n in owned)


@pytest.mark.parametrize("name", [name for name in METHODS if "ce_weight" in method_settings(name)])
def test_weights_scale_their_terms(name: str) -> None:
    setting = {"at": "at_mean_weight"}.get(name, f"{name}_weight")
    weight = DistillConfig().model_dump()[setting]
    light = make(name, {})(make_batch(7)).terms
    heavier = make(name, {setting: 3.0 * weight})(make_batch(7)).terms
    for term in light:
        factor = 3.0 if term == name else 1.0
        torch.testing.assert_close(heavier[term], factor * light[term])


@pytest.mark.parametrize("term", POSTERIORS)
def test_the_weight_of_a_combined_term_scales_it_alone(term: str) -> None:
    light, heavier = (
        make(f"kr+{term}", {"posterior": {term: weight}})(make_batch(7)).terms
        for weight in (0.5, 1.5)
    )
    assert list(light) == ["ce", "kr", term]
    for name in light:
        torch.testing.assert_close(heavier[name], (3.0 if name == term else 1.0) * light[name])


@pytest.mark.parametrize("name", [n for n in METHODS if METHODS[n].feature_kinds])
def test_comparing_features_needs_them(name: str) -> None:
    learner = make(name, {})
    with pytest.raises(KrscaleError, match="features, but the batch carries none"):
        learner(replace(make_batch(7), teacher_features={}))
    alone = replace(context(student_network()), teacher_shapes={})
    if name not in ("pkt", "rkd"):  # these accept features of any shape
        with pytest.raises(KrscaleError, match="shapes of the teacher's"):
            build_method(name, alone, DistillConfig().model_dump())


@every_method
def test_a_copied_learner_learns_for_itself(name: str, changes: dict[str, Any]) -> None:
    learner = make(name, changes)
    learner(make_batch(7))
    twin = copy.deepcopy(learner)
    total(twin(make_batch(7)).terms).backward()
    assert all(p.grad is not None for p in twin.parameters())
    assert all(p.grad is None for p in learner.parameters())


@every_method
def test_state_comes_back(name: str, changes: dict[str, Any]) -> None:
    learner, twin = make(name, changes), make(name, changes)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.01)
    twin.load_state_dict(learner.state_dict())
    assert torch.equal(total(twin(make_batch(7)).terms), total(learner(make_batch(7)).terms))


def unlabelled(batch: Batch, rows: list[int]) -> Batch:
    labels = batch.labels.clone()
    labels[rows] = UNLABELLED
    return replace(batch, labels=labels)


@every_method
def test_an_image_without_a_label_has_no_label_term_and_all_others(
    name: str, changes: dict[str, Any]
) -> None:
    learner, batch = make(name, changes), make_batch(7)
    assert batch.tap_logits is not None
    rows, labelled = [1, 4, 6], [0, 2, 3, 5]
    taught = batch.labels.clone()
    taught[rows] = batch.tap_logits[rows, -1].argmax(dim=-1)
    # With the teacher's most likely class as the label, only the label's own term differs.
    expected = learner(replace(batch, labels=taught)).terms
    found = learner(unlabelled(batch, rows)).terms
    assert_terms(found, 7)
    assert (found["ce"][rows] == 0).all()
    torch.testing.assert_close(found["ce"][labelled], expected["ce"][labelled])
    for term in found.keys() - {"ce"}:
        torch.testing.assert_close(found[term], expected[term], msg=term)
    assert takes_unlabelled(name) == learner.method.takes_unlabelled
    if takes_unlabelled(name):  # the teacher teaches them
        assert (torch.stack(list(found.values())).sum(dim=0)[rows] != 0).all()
    else:  # without a teacher they teach nothing
        assert found.keys() == {"ce"}


@every_method
def test_a_missing_label_is_no_class(name: str, changes: dict[str, Any]) -> None:
    """-1 must not be used as an index: the last class would be taken for the label."""
    learner, batch = make(name, changes), make_batch(7)
    assert batch.tap_logits is not None
    favoured = batch.tap_logits.clone()
    favoured[:, -1] = 0.0
    favoured[:, -1, 2] = 9.0  # the teacher's class is 2, never the last
    batch = unlabelled(replace(batch, tap_logits=favoured), list(range(7)))
    second, last = (
        replace(batch, labels=torch.full((7,), label)) for label in (2, NUM_CLASSES - 1)
    )
    found = learner(batch).terms
    assert (found["ce"] == 0).all()
    for term, values in found.items():
        if term != "ce":
            torch.testing.assert_close(values, learner(second).terms[term], msg=term)
    if name in ("dkd", COMBINED):
        assert not torch.allclose(found["dkd"], learner(last).terms["dkd"])


@every_method
def test_a_batch_of_unlabelled_images_alone_gives_finite_gradients(
    name: str, changes: dict[str, Any]
) -> None:
    learner = make(name, changes)
    total(learner(unlabelled(make_batch(7), list(range(7)))).terms).backward()
    for parameter_name, parameter in learner.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name


def test_methods_of_ones_own_refuse_unlabelled_images_until_they_say_otherwise() -> None:
    assert not Method.takes_unlabelled
    without = {name for name in METHODS if not takes_unlabelled(name)}
    assert without == {"plain", "label_smoothing"}
    assert without == {name for name in METHODS if not METHODS[name].needs_teacher}
    assert takes_unlabelled(COMBINED)


def test_any_other_label_outside_the_classes_is_an_error() -> None:
    for label in (-2, NUM_CLASSES):
        batch = replace(make_batch(7), labels=torch.full((7,), label))
        for name in ("plain", "kd", "dkd"):
            with pytest.raises((IndexError, RuntimeError)):
                make(name, {})(batch)
