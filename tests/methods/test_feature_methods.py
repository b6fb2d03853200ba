"""The methods on features, against values computed by hand or in another way."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from krscale.config import DistillConfig, load
from krscale.config.methods import ATReduction, ATSettings
from krscale.errors import UserError
from krscale.knowledge.features import FeatureKind, Shapes, attention_map, feature_shapes
from krscale.methods import METHODS, Batch, MethodContext, build_method
from krscale.methods.at import AT, at_loss
from krscale.methods.crd import crd_loss
from krscale.methods.fitnet import FitNet, hint_loss
from krscale.methods.pkt import pkt_loss


def context(kind: FeatureKind, student: Shapes, teacher: Shapes) -> MethodContext:
    return replace(
        MethodContext.without_teacher(3),
        student_stage_shapes=student,
        teacher_shapes={kind: feature_shapes(kind, teacher)},
    )


class TestAT:
    def test_by_hand(self) -> None:
        # Two channels on two positions: squares (9 + 1) / 2 and (0 + 0) / 2, so the map is (1, 0).
        stage = torch.tensor([[[[3.0, 0.0]], [[1.0, 0.0]]]])
        torch.testing.assert_close(attention_map(stage), torch.tensor([[[1.0, 0.0]]]))
        other = torch.tensor([[[[math.sqrt(3.0), 2.0]]]])  # squares 3 and 4: (0.6, 0.8)
        torch.testing.assert_close(attention_map(other), torch.tensor([[[0.6, 0.8]]]))
        # (1 - 0.6)^2 + 0.8^2 = 0.8: 0.4 is half of it, and the mean over two positions.
        pair = [attention_map(stage)], [attention_map(other)]
        for reduction in ("mean", "sum"):
            loss = at_loss(*pair, reduction)
            torch.testing.assert_close(loss, torch.tensor([0.4]))
            loss = at_loss(pair[0] * 2, pair[1] * 2, reduction)
            torch.testing.assert_close(loss, torch.tensor([0.8]))
        # A third position, where both are 0: the same sum, over three positions.
        wider = [[F.pad(maps[0], (0, 1))] for maps in pair]
        torch.testing.assert_close(at_loss(*wider, "mean"), torch.tensor([0.8 / 3]))
        torch.testing.assert_close(at_loss(*wider, "sum"), torch.tensor([0.4]))

    def test_the_default_is_the_authors_loss_and_its_gradient(self) -> None:
        def at(x: Tensor) -> Tensor:
            return F.normalize(x.pow(2).mean(1).view(x.size(0), -1))

        shapes = ((4, 16, 16), (5, 8, 8), (6, 4, 4))
        student = [torch.randn(7, *s, dtype=torch.float64, requires_grad=True) for s in shapes]
        teacher = [torch.randn(7, *s, dtype=torch.float64) for s in shapes]
        published = 1000.0 * sum(
            (at(x) - at(y)).pow(2).mean() for x, y in zip(student, teacher, strict=True)
        )
        wanted = torch.autograd.grad(published, student)
        settings = ATSettings(ce_weight=0.0, kd_weight=0.0, at_mean_weight=1000.0)
        method = AT(context("attention", shapes, shapes), settings)
        own = [x.detach().float().requires_grad_() for x in student]
        maps = [attention_map(y.float()) for y in teacher]
        loss = method.term_weight * method.compare(own, maps, torch.zeros(7)).mean()
        torch.testing.assert_close(loss, published.detach().float(), rtol=1e-5, atol=0.0)
        gradients = torch.autograd.grad(loss, own)
        for got, want in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(got, want.float(), rtol=1e-3, atol=1e-6)

    def test_each_reduction_has_a_weight_of_its_own(self) -> None:
        shapes = ((2, 4, 4), (3, 2, 2))
        for reduction, weight in (("mean", 3.0), ("sum", 5.0)):
            settings = ATSettings(at_reduction=reduction, at_mean_weight=3.0, at_weight=5.0)
            assert AT(context("attention", shapes, shapes), settings).term_weight == weight

    def test_a_weight_that_is_not_used_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at_weight is used with at_reduction = 'sum' alone"):
            ATSettings(at_weight=5.0)
        with pytest.raises(UserError, match=r"at_weight is used with .* set it, too"):
            load(None, ["distill.at_weight=5"])
        assert (
            load(None, ["distill.at_weight=5", "distill.at_reduction=sum"]).distill.at_weight == 5
        )
        assert load(None, ["distill.at_mean_weight=5"]).distill.at_mean_weight == 5

    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_zero_at_equality_whatever_the_scale(self, reduction: ATReduction) -> None:
        stage = torch.rand(3, 4, 5, 5)
        own = (2.0 * stage).requires_grad_()
        loss = at_loss([attention_map(own)], [attention_map(stage)], reduction)
        loss.sum().backward()
        assert loss.abs().max() < 1e-10
        assert own.grad is not None
        assert own.grad.abs().max() < 1e-6

    def test_stages_meet_at_the_same_relative_depth(self) -> None:
        student, teacher = ((2, 4, 4), (2, 2, 2)), ((3, 4, 4),) * 2 + ((3, 2, 2),) * 2
        settings = DistillConfig(at_mean_weight=1.0).model_dump()
        method = build_method("at", context("attention", student, teacher), settings)
        assert isinstance(method, AT)
        maps = [attention_map(torch.rand(5, *shape)) for shape in teacher]
        stages = [maps[1].sqrt()[:, None], maps[3].sqrt()[:, None]]
        assert method.compare(stages, maps, torch.zeros(5)).abs().max() < 1e-10

    def test_maps_of_unequal_size_are_refused(self) -> None:
        student, teacher = ((2, 8, 8), (4, 8, 8)), ((9, 8, 8), (9, 4, 4))
        with pytest.raises(UserError, match=r"stage 2 of the student .* 8x8, stage 2 .* of 4x4"):
            AT.check_shapes(student, feature_shapes("attention", teacher))
        with pytest.raises(UserError, match=r"shape \[9, 7\]; an attention map needs \[C, H, W\]"):
            feature_shapes("attention", ((9, 7),))


class TestFitNet:
    def test_by_hand(self) -> None:
        hint = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
        regressed = torch.tensor([[[[0.0, 2.0]], [[3.0, 1.0]]]])
        # (1 + 9) / 2 over 4 elements
        torch.testing.assert_close(hint_loss(regressed, hint), torch.tensor([1.25]))
        assert hint_loss(hint, hint) == 0.0

    def test_the_middle_stage_is_guided_through_the_regressor(self) -> None:
        student, teacher = ((2, 4, 4), (3, 2, 2), (4, 1, 1)), ((5, 4, 4), (6, 2, 2), (7, 1, 1))
        settings = DistillConfig().model_dump()
        method = build_method("fitnet", context("map", student, teacher), settings)
        assert isinstance(method, FitNet)
        stages = [torch.rand(5, *shape) for shape in student]
        weight, bias = method.heads[0].weight[:, :, 0, 0], method.heads[0].bias
        hint = torch.einsum("oc,bchw->bohw", weight, stages[1]) + bias[:, None, None]
        assert method.compare(stages, [hint.detach()], torch.zeros(5)).abs().max() < 1e-10

    def test_maps_of_unequal_size_are_refused(self) -> None:
        with pytest.raises(UserError, match=r"'fitnet': .* student has maps of 8x8, .* 4x4"):
            FitNet.check_shapes(((2, 8, 8),), feature_shapes("map", ((9, 4, 4),)))


class TestPKT:
    def test_by_hand(self) -> None:
        # Three samples; cosines of the student 0, -1, 0 and of the teacher 1, 0, 0.
        student = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
        teacher = torch.tensor([[1.0, 0.0, 0.0], [5.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        # Affinities of sample 0: student 1/2 and 0, teacher 1 and 1/2.
        p, q = [1.0, 0.0], [2 / 3, 1 / 3]
        small = 1e-7
        expected = sum(b * math.log((b + small) / (a + small)) for a, b in zip(p, q, strict=True))
        # Sample 1: student 1/2 and 1/2, teacher 1 and 1/2.
        second = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
        loss = pkt_loss(student, teacher)
        torch.testing.assert_close(loss[:2], torch.tensor([expected, second]), rtol=1e-4, atol=1e-6)

    def test_zero_where_similarities_agree(self) -> None:
        teacher = torch.randn(9, 4)
        turned = torch.linalg.qr(torch.randn(6, 6))[0][:4]
        student = (3.0 * teacher @ turned).requires_grad_()  # other size, scale and axes
        loss = pkt_loss(student, teacher)
        loss.sum().backward()
        assert loss.abs().max() < 1e-6
        assert student.grad is not None
        assert student.grad.abs().max() < 1e-6

    def test_a_sample_alone(self) -> None:
        assert pkt_loss(torch.ones(1, 3), torch.ones(1, 4)) == 0.0


class TestCRD:
    @staticmethod
    def by_loops(student: Tensor, teacher: Tensor, labels: list[int], tau: float) -> list[float]:
        g_s = F.normalize(student.double(), dim=1)
        g_t = F.normalize(teacher.double(), dim=1)

        def contrast(i: int, anchors: Tensor, others: Tensor) -> float:
            negatives = [j for j in range(len(labels)) if labels[j] != labels[i]]
            exp = {j: math.exp(float(anchors[i] @ others[j]) / tau) for j in [i, *negatives]}
            noise = len(negatives) / (len(negatives) + 1)
            h = {j: e / sum(exp.values()) for j, e in exp.items()}
            h = {j: p / (p + noise) for j, p in h.items()}
            return -math.log(h[i]) - sum(math.log(1.0 - h[j]) for j in negatives)

        return [contrast(i, g_s, g_t) + contrast(i, g_t, g_s) for i in range(len(labels))]

    def test_by_hand(self) -> None:
        # Two classes, orthogonal embeddings that agree: P_ii = e / (e + 1) at temperature 1.
        own = torch.eye(2)
        p, noise = math.e / (math.e + 1), 0.5
        expected = 2 * (-math.log(p / (p + noise)) - math.log(noise / (1 - p + noise)))
        loss = crd_loss(own, own, torch.tensor([0, 1]), 1.0)
        torch.testing.assert_close(loss, torch.full((2,), expected))

    def test_against_loops(self) -> None:
        student, teacher = torch.randn(6, 4), torch.randn(6, 4)
        labels = [0, 1, 1, 2, 0, 3]
        expected = torch.tensor(self.by_loops(student, teacher, labels, 0.3)).float()
        loss = crd_loss(student, teacher, torch.tensor(labels), 0.3)
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)

    def test_agreement_is_better_and_one_class_alone_teaches_nothing(self) -> None:
        teacher, labels = torch.eye(4), torch.arange(4)
        right, wrong = (crd_loss(e, teacher, labels, 0.07) for e in (teacher, teacher.roll(1, 0)))
        assert (right < wrong).all()
        assert crd_loss(teacher, teacher.roll(1, 0), torch.zeros(4), 0.07).abs().max() == 0.0
        assert crd_loss(teacher[:1], teacher[:1], labels[:1], 0.07) == 0.0


@pytest.mark.parametrize("name", ["fitnet", "at", "pkt", "crd", "reviewkd", "rkd"])
def test_kd_weight_zero_is_the_papers_own(name: str) -> None:
    method = METHODS[name]
    [kind] = method.feature_kinds
    shapes = ((2, 4, 4), (3, 4, 4))
    settings = DistillConfig(kd_weight=0.0, ce_weight=1.0).model_dump()
    built = build_method(name, context(kind, shapes, shapes), settings)
    features = tuple(torch.rand(5, *shape) for shape in shapes)
    from krscale.knowledge.features import read_features
    from krscale.knowledge.taps import TapOutputs

    batch = Batch(
        torch.zeros(5, 1, 4, 4),
        torch.tensor([0, 1, 2, 0, 1]),
        torch.arange(5),
        torch.randn(5, 2, 3),
        5,
        {kind: read_features(kind, features)},
    )
    terms = built(TapOutputs(torch.randn(5, 3), features), batch)
    assert list(terms) == ["ce", "kd", name]
    assert terms["kd"].abs().max() == 0.0
