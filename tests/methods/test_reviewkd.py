"""ReviewKD against values computed by hand, and against a plain version of the authors' network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krscale.batch_norm import SharedBatchNorm, convert_batch_norm
from krscale.config import load
from krscale.config.methods import ReviewKDSettings
from krscale.errors import UserError
from krscale.knowledge.features import Shapes
from krscale.methods import MethodContext
from krscale.methods.reviewkd import ReviewKD, hcl_loss
from krscale.parallel import Workers
from krscale.setup.methods import check_methods

STUDENT: Shapes = ((2, 16, 16), (3, 8, 8), (4, 4, 4))
TEACHER: Shapes = ((5, 16, 16), (6, 8, 8), (7, 4, 4))


def built(student: Shapes = STUDENT, teacher: Shapes = TEACHER, warmup: float = 0.0) -> ReviewKD:
    torch.manual_seed(0)
    context = replace(
        MethodContext.without_teacher(3),
        student_stage_shapes=student,
        teacher_shapes={"maps": teacher},
    )
    return ReviewKD(context, ReviewKDSettings(reviewkd_warmup=warmup))


def stages(shapes: Shapes, count: int = 3, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, *shape, generator=generator) for shape in shapes]


class TestLoss:
    def test_by_hand(self) -> None:
        # A map of 2x2 has one coarser level, its mean: (d + d_1 / 2) / (1 + 1 / 2).
        student = torch.tensor([[[[2.0, 0.0], [2.0, 0.0]]], [[[1.0, 1.0], [1.0, 5.0]]]])
        teacher = torch.ones(2, 1, 2, 2)
        expected = torch.tensor([(1.0 + 0.0) / 1.5, (4.0 + 1.0 / 2) / 1.5])
        torch.testing.assert_close(hcl_loss([student], [teacher]), expected)
        torch.testing.assert_close(hcl_loss([student] * 2, [teacher] * 2), 2 * expected)
        # One place has no coarser level.
        one = student[:, :, :1, :1]
        torch.testing.assert_close(hcl_loss([one], [teacher[:, :, :1, :1]]), torch.tensor([1.0, 0]))

    def test_the_mean_is_the_authors_value(self) -> None:
        own, theirs = (
            [x.double() for x in stages((*TEACHER, (7, 1, 1)), 5, seed)] for seed in (1, 2)
        )
        wanted = 0.0
        for s, t in zip(own, theirs, strict=True):
            part, weight, total = F.mse_loss(s, t), 1.0, 1.0
            for level in (4, 2, 1):
                if level >= s.shape[2]:
                    continue
                weight /= 2.0
                coarse = (F.adaptive_avg_pool2d(x, (level, level)) for x in (s, t))
                part = part + weight * F.mse_loss(*coarse)
                total += weight
            wanted = wanted + part / total
        found = hcl_loss(own, theirs)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found.mean(), wanted)

    def test_the_gradient_is_that_of_the_values(self) -> None:
        own, theirs = (torch.randn(2, 1, 3, 5, dtype=torch.float64) for _ in range(2))
        own.requires_grad_()
        assert torch.autograd.gradcheck(lambda x: hcl_loss([x], [theirs]), (own,))


def by_the_authors(method: ReviewKD, maps: list[Tensor], wanted: Shapes) -> list[Tensor]:
    """Their loop from the deepest stage to the shallowest, with the weights of `method`."""

    def normalised(layers: nn.Module, x: Tensor) -> Tensor:
        convolution, norm = layers.children()
        assert isinstance(convolution, nn.Conv2d)
        padding = convolution.kernel_size[0] // 2
        x = F.conv2d(x, convolution.weight, padding=padding)
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), False, keepdim=True)
        scale, shift = (p[:, None, None] for p in norm.parameters())
        return scale * (x - mean) / (variance + 1e-5).sqrt() + shift

    found: list[Tensor] = []
    y = None
    for n in reversed(range(len(maps))):
        head = method.get_submodule(f"heads.{n}")
        x = normalised(head.get_submodule("enter"), maps[n])
        if y is not None:
            y = F.interpolate(y, x.shape[2:], mode="nearest")
            gate = head.get_submodule("attention")(torch.cat([x, y], dim=1)).sigmoid()
            x = x * gate[:, 0].unsqueeze(1) + y * gate[:, 1].unsqueeze(1)
        y = F.interpolate(x, wanted[n][1:], mode="nearest")
        found.insert(0, normalised(head.get_submodule("leave"), y))
    return found


class TestFusion:
    @pytest.mark.parametrize("teacher", [TEACHER, ((5, 32, 24), (6, 8, 8), (7, 2, 2))])
    def test_against_the_authors_loop(self, teacher: Shapes) -> None:
        method, own = built(teacher=teacher), stages(STUDENT)
        for parameter in method.parameters():
            nn.init.normal_(parameter, std=0.5)
        wanted = (*teacher, (7, 1, 1))
        theirs = stages(teacher, seed=2)
        fused = by_the_authors(method, [*own, own[-1].mean((2, 3), keepdim=True)], wanted)
        expected = hcl_loss(fused, [*theirs, theirs[-1].mean((2, 3), keepdim=True)])
        found = method.compare(own, theirs, torch.zeros(3))
        assert [tuple(x.shape[1:]) for x in fused] == list(wanted)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    def test_what_the_authors_build(self) -> None:
        method = built()
        channels = [(head.enter[0].in_channels, head.leave[0].out_channels)
                    for head in method.heads]  # fmt: skip
        assert channels == [(2, 5), (3, 6), (4, 7), (4, 7)]
        assert [head.enter[0].out_channels for head in method.heads] == [4] * 4
        assert [head.attention is None for head in method.heads] == [False] * 3 + [True]

    def test_stages_meet_at_the_same_relative_depth(self) -> None:
        teacher = ((5, 16, 16), (6, 16, 16), (7, 4, 4), (8, 4, 4))
        method = built(STUDENT[:2], teacher)
        found = [x.shape[1:] for x in method.fuse(stages((*STUDENT[:2], (3, 1, 1))))]
        assert found == [(6, 16, 16), (8, 4, 4), (8, 1, 1)]
        assert method.compare(stages(STUDENT[:2]), stages(teacher), torch.zeros(3)).shape == (3,)

    @pytest.mark.parametrize("count", [0, 1])
    def test_an_image_alone_and_none_are_not_normalised(self, count: int) -> None:
        method = built()
        before = {k: v.clone() for k, v in method.state_dict().items() if "heads.3" in k}
        loss = method.compare(stages(STUDENT, count), stages(TEACHER, count), torch.zeros(count))
        loss.sum().backward()
        assert torch.isfinite(loss).all()
        assert all(torch.equal(v, method.state_dict()[k]) for k, v in before.items())
        assert all(torch.isfinite(value).all() for value in method.state_dict().values())

    def test_workers_share_its_batch_norm(self) -> None:
        shared = convert_batch_norm(built(), Workers(0, 2))
        norms = [m for m in shared.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        assert len(norms) == 8
        assert all(isinstance(norm, SharedBatchNorm) for norm in norms)

    def test_stages_without_maps_are_refused(self) -> None:
        with pytest.raises(UserError, match=r"\[9, 7\]; a feature map needs \[C, H, W\]"):
            ReviewKD.check_shapes(((9, 7),), TEACHER)


def test_the_warm_up() -> None:
    method, own, theirs = built(warmup=0.4), stages(STUDENT), stages(TEACHER, seed=2)
    whole = method.compare(own, theirs, torch.zeros(3))
    for progress, share in ((0.0, 0.0), (0.1, 0.25), (0.4, 1.0), (1.0, 1.0)):
        method.begin_epoch(progress)
        torch.testing.assert_close(method.compare(own, theirs, torch.zeros(3)), share * whole)
    without = built()
    without.begin_epoch(0.0)
    assert (without.compare(own, theirs, torch.zeros(3)) > 0).all()


def test_the_warm_up_does_not_compile_the_loss_again() -> None:
    method, own, theirs = built(warmup=0.4), stages(STUDENT), stages(TEACHER, seed=2)
    compare = torch.compile(method.compare, backend="eager")
    method.begin_epoch(0.1)
    early = compare(own, theirs, torch.zeros(3))
    method.begin_epoch(0.3)
    with torch.compiler.set_stance("fail_on_recompile"):
        torch.testing.assert_close(compare(own, theirs, torch.zeros(3)), 3.0 * early)


def test_a_training_that_would_be_warm_up_alone_is_refused() -> None:
    brief = ("train.num_epochs=1", "search.methods=['kd', 'reviewkd']")
    with pytest.raises(UserError, match=r"distill\.reviewkd_warmup: a training of one epoch"):
        check_methods(load(None, brief))
    check_methods(load(None, [*brief, "distill.reviewkd_warmup=0"]))
    check_methods(load(None, ["train.num_epochs=2", *brief[1:]]))
    check_methods(load(None, ["train.num_epochs=1"]))
