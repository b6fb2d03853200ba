"""KR as a whole against a float64 computation, and what it is combined with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from krscale.config import DistillConfig
from krscale.errors import KrscaleError, UserError
from krscale.knowledge.aggregation import Groups, group_weights, mix_taps, tap_weights
from krscale.knowledge.loss import kr_loss
from krscale.knowledge.recoding import recode, recode_gap
from krscale.knowledge.schedule import scheduled
from krscale.knowledge.taps import TapOutputs
from krscale.knowledge.where import WhereLoss, pair_stages, where_distributions
from krscale.methods import Batch, MethodContext, build_method
from krscale.methods.kd import kd_loss
from krscale.methods.kr import KR

GAINS = [0.1, 0.3, 0.5, 0.8]

CONTEXT = MethodContext(
    num_classes=5,
    num_teacher_taps=4,
    stage_ends=(2, 3, 4),
    information_gain=torch.tensor(GAINS),
    student_shapes=((3, 2, 2), (7,)),
    student_layers=((nn.Linear(4, 4),), (), (nn.Linear(4, 5),)),
    teacher_histograms=torch.full((4, 8), 1 / 8),
    teacher_layer_sizes=torch.ones(4),
)


def make(context: MethodContext = CONTEXT, **changes: Any) -> KR:
    torch.manual_seed(0)
    name = "+".join(["kr", *changes.get("posterior", {})])
    built = build_method(name, context, {**DistillConfig().model_dump(), **changes})
    assert isinstance(built, KR)
    return built


def example(size: int = 6) -> tuple[TapOutputs, Batch]:
    generator = torch.Generator().manual_seed(1)
    features = (
        torch.randn(size, 3, 2, 2, generator=generator),
        torch.randn(size, 7, generator=generator),
    )
    logits = torch.randn(size, 5, generator=generator).requires_grad_()
    said = 3 * torch.randn(size, 4, 5, generator=generator)
    labels = torch.randint(0, 5, (size,), generator=generator)
    batch = Batch(torch.zeros(size, 1), labels, torch.arange(size), said, size)
    return TapOutputs(logits, features), batch


def group_logits(method: KR, student: TapOutputs) -> list[Tensor]:
    """Return the logits of three stages: of heads on both features, and the student's own."""
    pooled = (student.features[0].flatten(1), student.features[1])  # maps of 2x2 have 2x2 cells
    heads = [
        nn.functional.linear(x, h.weight, h.bias) for x, h in zip(pooled, method.heads, strict=True)
    ]
    return [*heads, student.logits]


def test_value_and_gradients_in_float64() -> None:
    method = make(
        granularity="stage",
        sparsity=0.5,
        temperature=2.0,
        kr_weight=3.0,
        auxiliary_weight=0.25,
        ce_weight=0.7,
    )
    student, batch = example()
    terms = method(student, batch)
    q = (batch.tap_logits.double() / 2.0).softmax(dim=-1)
    targets = [(0.1 * q[:, 0] + 0.3 * q[:, 1]) / 0.4, q[:, 2], q[:, 3]]
    weights = [0.25 * 0.2 / 0.8, 0.25 * 0.5 / 0.8, 1.0]
    logits = group_logits(method, student)
    expected = torch.zeros(6, dtype=torch.float64)
    for target, weight, z in zip(targets, weights, logits, strict=True):
        log_p = (z.detach().double() / 2.0).log_softmax(dim=-1)
        expected += 3.0 * 4.0 * weight * (target * (target.log() - log_p)).sum(dim=-1)
    torch.testing.assert_close(terms["kr"], expected.float(), rtol=1e-4, atol=1e-5)
    ce = -student.logits.detach().double().log_softmax(-1).gather(1, batch.labels[:, None])[:, 0]
    torch.testing.assert_close(terms["ce"], 0.7 * ce.float(), rtol=1e-4, atol=1e-5)

    outputs = (student.logits, *(head.bias for head in method.heads))
    gradients = torch.autograd.grad(terms["kr"].sum(), outputs)
    gaps = [
        (z.detach() / 2.0).softmax(dim=-1) - target.float()
        for z, target in zip(logits, targets, strict=True)
    ]
    recoded = [
        3.0 * 4.0 * w * recode_gap(gap, 0.5) / 2.0 for w, gap in zip(weights, gaps, strict=True)
    ]
    expected_gradients = (recoded[2], recoded[0].sum(dim=0), recoded[1].sum(dim=0))
    for got, want in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    kept = torch.stack([recode(gap, 0.5)[1].float() for gap in gaps])
    torch.testing.assert_close(method.diagnostics()["kr/active_classes"], kept.mean())


def test_one_group_of_the_last_tap_without_sparsity_is_kd() -> None:
    context = replace(
        CONTEXT, num_teacher_taps=1, stage_ends=(1,), information_gain=torch.tensor([0.8])
    )
    method = make(context, granularity=1, sparsity=0.0, temperature=4.0, kr_weight=1.0)
    student, batch = example()
    batch = replace(batch, tap_logits=batch.tap_logits[:, -1:])
    ours = method(student, batch)["kr"]
    kd = kd_loss(student.logits, batch.tap_logits[:, -1], 4.0)
    gradients = [torch.autograd.grad(loss.sum(), student.logits)[0] for loss in (ours, kd)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours, kd, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("granularity", "taps"),
    [(1, ()), (2, (2,)), ("stage", (1, 2)), ("layer", (1, 2, 3)), ("network", ())],
)
def test_heads_sit_at_the_groups_relative_depth(
    granularity: int | str, taps: tuple[int, ...]
) -> None:
    method = make(granularity=granularity)
    assert method.head_taps == taps
    sizes = {1: 3 * 2 * 2, 2: 7, 3: 5}  # the third tap is the classifier: its logits
    assert [head.in_features for head in method.heads] == [sizes[tap] for tap in taps]
    student, batch = example()
    assert method.group_logits(student).shape == (6, len(taps) + 1, 5)
    assert method(student, batch)["kr"].shape == (6,)


@pytest.mark.parametrize(("alignment", "taps"), [("stage", (2, 3)), ("depth", (1, 2))])
def test_heads_sit_where_the_alignment_says(alignment: str, taps: tuple[int, ...]) -> None:
    """Stages of 1 and 3 taps (teacher), 1 and 2 (student): all groups end in the second."""
    context = replace(CONTEXT, stage_ends=(1, 4), student_stage_ends=(1, 3))
    assert make(context, granularity=3, alignment=alignment).head_taps == taps


@pytest.mark.parametrize(("head_grid", "cells"), [(1, 1), (2, 4), (3, 4)])
def test_heads_read_the_cells_of_a_grid(head_grid: int, cells: int) -> None:
    method = make(granularity="stage", head_grid=head_grid)
    assert [head.in_features for head in method.heads] == [3 * cells, 7]
    student, _ = example()
    said = method.group_logits(student)[:, 0]
    # Mirroring changes the output of a head with cells, but not of one that reads one mean.
    mirrored = TapOutputs(student.logits, (student.features[0].flip(3), student.features[1]))
    unmoved = torch.allclose(method.group_logits(mirrored)[:, 0], said, atol=1e-6)
    assert unmoved == (cells == 1)


def test_a_student_with_only_its_classifier() -> None:
    method = make(replace(CONTEXT, student_shapes=()), granularity="layer")
    student, batch = example()
    loss = method(TapOutputs(student.logits, ()), batch)["kr"]
    assert method.head_taps == (1, 1, 1)
    assert torch.isfinite(loss).all()


def test_auxiliary_weight_zero_teaches_the_deepest_group_alone() -> None:
    student, batch = example()
    alone = make(granularity="stage", auxiliary_weight=0.0)
    terms = alone(student, batch)
    deepest = make(granularity="stage", auxiliary_weight=7.0)
    deepest.group_weights[:-1] = 0.0
    assert torch.equal(terms["kr"], deepest(student, batch)["kr"])
    assert not torch.equal(make(auxiliary_weight=1.0)(student, batch)["kr"], terms["kr"])
    # The mean of active classes leaves out groups that teach nothing.
    own, theirs = student.logits.detach(), batch.tap_logits[:, -1]
    p, q = ((logits / alone.temperature).softmax(dim=-1) for logits in (own, theirs))
    kept = recode(p - q, alone.settings.sparsity)[1].float().mean()
    torch.testing.assert_close(alone.diagnostics()["kr/active_classes"], kept)


def test_posterior_terms_are_those_of_their_methods() -> None:
    student, batch = example()
    settings = {"temperature": 3.0, "dkd_nontarget_weight": 2.5}
    terms = make(**settings, posterior={"kd": 0.4, "dkd": 1.5, "dist": 0.0})(student, batch)
    assert list(terms) == ["ce", "kr", "kd", "dkd"]
    for name in ("kd", "dkd"):
        alone = {**DistillConfig().model_dump(), **settings, f"{name}_weight": 1.0}
        expected = build_method(name, CONTEXT, alone)(student, batch)[name]
        torch.testing.assert_close(terms[name], {"kd": 0.4, "dkd": 1.5}[name] * expected)
    plain = make(**settings)(student, batch)
    assert list(plain) == ["ce", "kr"]
    assert torch.equal(plain["kr"], terms["kr"])


def test_parameter_term_is_the_same_for_every_sample() -> None:
    student, batch = example()
    terms = make(parameter_weight=0.5)(student, batch)
    source = make(parameter_weight=2.0).parameter_source
    assert source is not None
    torch.testing.assert_close(terms["parameter"], (0.5 * source()).expand(6))
    assert "parameter" not in make(parameter_weight=0.0)(student, batch)


def test_parameter_term_needs_the_teachers_histograms() -> None:
    context = replace(CONTEXT, teacher_histograms=None)
    with pytest.raises(KrscaleError, match="histograms"):
        make(context, parameter_weight=0.5)
    make(context, parameter_weight=0.0)


def test_more_sparsity_fewer_active_classes() -> None:
    student, batch = example()
    counts = []
    for sparsity in (0.0, 0.4, 0.8):
        method = make(sparsity=sparsity)
        method(student, batch)
        counts.append(method.diagnostics()["kr/active_classes"].item())
    assert counts[0] == 5.0
    assert counts[0] > counts[1] > counts[2] >= 2.0


@pytest.mark.parametrize("schedule", ["constant", "rising", "falling"])
def test_the_sparsity_of_an_epoch_is_what_the_schedule_says(schedule: str) -> None:
    student, batch = example()
    method = make(sparsity=0.8, sparsity_schedule=schedule)
    for progress in (0.0, 0.5, 1.0):
        method.begin_epoch(progress)
        got = torch.autograd.grad(method(student, batch)["kr"].sum(), student.logits)[0]
        same = make(sparsity=scheduled(0.8, schedule, progress))
        want = torch.autograd.grad(same(student, batch)["kr"].sum(), student.logits)[0]
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
        assert method.diagnostics() == same.diagnostics()


def test_a_schedule_starts_by_itself_and_keeps_nothing_in_the_state() -> None:
    assert make(sparsity=0.8, sparsity_schedule="rising").current_sparsity == 0.0
    assert all(name.startswith("heads.") for name in make().state_dict())


@pytest.mark.parametrize("progress", [0.0, 0.35, 0.7, 1.0])
def test_auxiliary_groups_fall_to_nothing(progress: float) -> None:
    student, batch = example()
    method = make(granularity="stage", auxiliary_schedule="falling", auxiliary_weight=0.8)
    method.begin_epoch(progress)
    left = max(0.0, 1.0 - progress / 0.7)
    weight = 0.8 * left
    same = make(granularity="stage", auxiliary_weight=weight, auxiliary_schedule="constant")
    torch.testing.assert_close(method(student, batch)["kr"], same(student, batch)["kr"])
    assert method.teaches_heads == (progress < 0.7)
    torch.testing.assert_close(method.group_weights[-1], torch.tensor(1.0))


@pytest.mark.parametrize(
    ("progress", "groups", "heads"),
    [
        (0.0, ((0, 2), (2, 3), (3, 4)), [0, 1]),
        (0.2, ((0, 2), (2, 3), (3, 4)), [0, 1]),  # more than half is left: two of two
        (0.5, ((0, 3), (3, 4)), [1]),
        (0.7, ((0, 4),), []),
        (1.0, ((0, 4),), []),
    ],
)
def test_groups_coarsen_until_one_is_left(
    progress: float, groups: Groups, heads: list[int]
) -> None:
    """The result is KR with fewer groups, taught through the heads at their ends."""
    student, batch = example()
    method = make(granularity="stage", auxiliary_schedule="coarsening")
    method.begin_epoch(progress)
    gains = torch.tensor(GAINS)
    targets = mix_taps(batch.tap_logits, tap_weights(gains, groups), 4.0, "arithmetic")
    logits = group_logits(method, student)
    left = torch.stack([logits[place] for place in (*heads, 2)], dim=1)
    want = kr_loss(left, targets, group_weights(gains, groups), 4.0, 0.3)
    torch.testing.assert_close(method(student, batch)["kr"], want)


def test_no_group_is_left_for_rounding_alone() -> None:
    """At epoch 11 of 30 with an end at 0.55, exactly one of three auxiliary groups is left."""
    method = make(granularity="layer", auxiliary_schedule="coarsening", auxiliary_until=0.55)
    left = []
    for epoch in (10, 11, 12):
        method.begin_epoch(epoch / 30)
        left.append(int((method.group_weights > 0).sum()))
    assert left == [3, 2, 2]
    method.begin_epoch(torch.tensor(11 / 30, dtype=torch.float64))  # `KRLoss` takes tensors, too
    assert int((method.group_weights > 0).sum()) == 2


@pytest.mark.parametrize("changes", [{"auxiliary_schedule": "falling"}, {"auxiliary_weight": 0.0}])
def test_heads_that_teach_nothing_are_not_computed(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    student, batch = example()
    method = make(granularity="stage", **changes)
    method.begin_epoch(1.0)
    assert method.group_logits(student).shape == (6, 1, 5)
    calls: list[object] = []
    for head in method.heads:
        head.register_forward_hook(lambda *arguments: calls.append(arguments))
    method(student, batch)["kr"].sum().backward()
    assert not calls
    assert all(p.grad is None for p in method.parameters())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    method(student, batch)["kr"].sum().backward()
    assert not calls
    # Data-parallel training waits for every gradient.
    assert all(p.grad is not None and not p.grad.any() for p in method.parameters())


def with_stages(size: int = 6) -> tuple[MethodContext, TapOutputs, Batch]:
    """Two stages of student and teacher with positions."""
    student, batch = example(size)
    stages = torch.randn(2, size, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    teacher = where_distributions([stages[0] ** 2, stages[1] ** 2])
    context = replace(
        CONTEXT,
        student_stage_shapes=((3, 8, 8), (3, 8, 8)),
        teacher_shapes={"where": ((4, 4), (4, 4))},
    )
    batch = replace(batch, teacher_features={"where": teacher})
    return context, replace(student, stages=tuple(stages)), batch


@pytest.mark.parametrize(
    ("schedule", "progress", "factor"),
    [("constant", 1.0, 1.0), ("falling", 0.0, 1.0), ("falling", 0.25, 0.5), ("falling", 0.5, 0.0)],
)
def test_positions_have_a_weight_and_a_schedule_of_their_own(
    schedule: str, progress: float, factor: float
) -> None:
    context, student, batch = with_stages()
    same = {"auxiliary_schedule": "constant", "auxiliary_until": 0.5}
    method = make(context, where_weight=3.0, where_schedule=schedule, **same)
    method.begin_epoch(progress)
    terms = method(student, batch)
    pairs = pair_stages(context.student_stage_shapes, ((4, 4), (4, 4)))
    want = 3.0 * factor * WhereLoss(pairs)(student.stages, batch.teacher_features["where"])
    if factor:
        torch.testing.assert_close(terms["where"], want)
    else:
        assert "where" not in terms
    plain = make(context, **same)
    assert torch.equal(terms["kr"], plain(student, batch)["kr"])


def test_groups_and_positions_of_every_nth_step_have_the_gradient_of_all_steps() -> None:
    """Summed over n steps of one batch, the gradient is that of n steps that teach everything."""
    context, student, batch = with_stages()

    def gradients(interval: int) -> tuple[list[Tensor], list[Tensor], list[bool]]:
        method = make(context, where_weight=3.0, auxiliary_interval=interval)
        stages = tuple(stage.detach().requires_grad_() for stage in student.stages)
        own = replace(student, stages=stages, logits=student.logits.detach().requires_grad_())
        losses, read = [], []
        for step in range(3):
            method.begin_step(step)
            read.append(method.reads_blocks)
            features = own if read[-1] else TapOutputs(own.logits, ())
            terms = method(features, batch)
            assert list(terms) == ["ce", "kr", "where"]
            losses.append(torch.stack(list(terms.values())).sum())
        torch.stack(losses).sum().backward()
        found = (own.logits, *own.stages, *method.parameters())
        return [x.grad for x in found if x.grad is not None], losses, read

    every, losses, read = gradients(1)
    assert read == [True, True, True]
    third, losses_of_third, read = gradients(3)
    assert read == [True, False, False]
    assert len(third) == len(every) == 7  # of the logits, two stages, and two heads
    torch.testing.assert_close(third, every)
    torch.testing.assert_close(sum(losses_of_third), sum(losses))


def test_a_loss_without_heads_and_positions_reads_no_block() -> None:
    student, batch = example()
    method = make(granularity="stage")
    assert method.reads_blocks
    method.begin_epoch(1.0)
    assert not method.reads_blocks
    method(TapOutputs(student.logits, ()), batch)
    assert not make(granularity=1).reads_blocks


def test_without_weight_or_positions_nothing_is_asked_of_the_teacher() -> None:
    context, _, _ = with_stages()
    assert make(context, where_weight=1.0).feature_kinds == {"where"}
    assert make(context, where_weight=1.0).reads(("a",), ("b",)) == (("a",), ("b",))
    flat = replace(context, student_stage_shapes=((3, 1, 1), (7,)))
    for without in (make(context, where_weight=0.0), make(flat, where_weight=1.0)):
        assert without.where is None
        assert without.feature_kinds == frozenset()
        assert without.reads(("a",), ("b",)) == (("a",), ())


def test_positions_need_what_is_stored_of_them() -> None:
    context, student, batch = with_stages()
    with pytest.raises(KrscaleError, match="where features, but the batch carries none"):
        make(context, where_weight=1.0)(student, replace(batch, teacher_features={}))


def test_granularity_out_of_range() -> None:
    with pytest.raises(UserError, match="1 to 4 is allowed"):
        make(granularity=5)


def test_building_leaves_the_context_alone() -> None:
    make(granularity="layer", auxiliary_weight=0.1, parameter_weight=1.0)
    assert CONTEXT.information_gain.tolist() == pytest.approx(GAINS)
    assert CONTEXT.teacher_histograms.unique().tolist() == [1 / 8]
