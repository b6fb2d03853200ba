"""KRLoss: Knowledge Representing in the user's own training loop."""

from __future__ import annotations

import copy
from dataclasses import replace
from threading import Thread
from typing import Any

import pytest
import torch
from foreign_networks import LikeResNet, LikeViT
from kr_losses import BATCH, Pairs, grads, learn, make, make_pairs
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import krscale
from krscale import KRLoss
from krscale.config.methods import KRSettings
from krscale.errors import UserError
from krscale.knowledge.where import where_distributions


class Turned(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2)


def test_the_loop_of_the_readme(teacher: nn.Module, student: nn.Module, pairs: Pairs) -> None:
    state = copy.deepcopy(teacher.state_dict())
    kr = krscale.KRLoss.from_networks(teacher, student, pairs, granularity=3, sparsity=0.3)
    optimiser = torch.optim.Adam([*student.parameters(), *kr.parameters()], lr=0.02)
    shown = []
    for _ in range(25):
        for images, labels in pairs:
            loss = kr(images, labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        shown.append(float(kr.shown()["kr"]))
    assert shown[-1] < 0.5 * shown[0]
    images, labels = make_pairs(seed=1)[0]
    assert (student(images).argmax(dim=1) == labels).float().mean() > 0.9
    assert student.training
    assert all(torch.equal(state[name], value) for name, value in teacher.state_dict().items())
    assert grads(teacher) == []


def test_defaults_are_the_configs(teacher: nn.Module, student: nn.Module, pairs: Pairs) -> None:
    kr = KRLoss.from_networks(teacher, student, pairs)
    assert kr.settings == KRSettings()
    assert kr.reduction == "mean"


def test_steps_are_not_counted_here(teacher: nn.Module, student: nn.Module, pairs: Pairs) -> None:
    with pytest.raises(UserError, match=r"auxiliary_interval: .* only 1 is allowed \(got 2\)"):
        KRLoss.from_networks(teacher, student, pairs, auxiliary_interval=2)
    assert KRLoss.from_networks(teacher, student, pairs, auxiliary_interval=1)


def test_what_is_returned(teacher: nn.Module, student: nn.Module, pairs: Pairs) -> None:
    images, labels = pairs[0]
    kr = make(teacher, student, pairs)
    each = make(teacher, student, pairs, reduction="none")
    loss = each(images, labels)
    assert loss.shape == (BATCH,)
    assert loss.dtype == torch.float32
    assert kr(images, labels).shape == ()
    torch.testing.assert_close(kr(images, labels), loss.mean())
    outside = kr.loss(kr.student(images), kr.teacher(images), labels)
    assert torch.equal(outside, kr(images, labels))
    terms = kr.terms(kr.student(images), kr.teacher(images), labels.int())
    torch.testing.assert_close(terms["ce"] + terms["kr"], loss)
    torch.testing.assert_close(
        terms["ce"], 0.5 * cross_entropy(student(images), labels, reduction="none")
    )
    assert kr(images[:0], labels[:0]) == 0.0
    assert set(kr.shown()) == {"ce", "kr", "kr/active_classes"}
    assert not any(value.requires_grad for value in kr.shown().values())


def test_zero_where_student_and_teacher_agree(teacher: nn.Module, pairs: Pairs) -> None:
    """Only the deepest group counts: the classifier's own distribution is its target."""
    images, labels = pairs[0]
    kr = make(teacher, copy.deepcopy(teacher).eval(), pairs, granularity="layer")
    kr.method.group_weights[:-1] = 0.0
    term = kr.terms(kr.student(images), kr.teacher(images), labels)["kr"]
    assert term.abs().max() < 1e-4
    outputs = kr.student(images)
    others = replace(outputs, logits=outputs.logits.roll(1, dims=-1))
    assert (kr.terms(others, kr.teacher(images), labels)["kr"] > 1e-2).any()


def test_parameters_are_the_heads_alone(
    teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    kr = make(teacher, student, pairs)
    assert [name for name, _ in kr.named_parameters()] == [
        f"method.heads.{i}.{name}" for i in range(2) for name in ("weight", "bias")
    ]
    kr(*pairs[0]).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in kr.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
    assert list(make(teacher, student, pairs, granularity=1).parameters()) == []


def test_modes_are_each_networks_own(teacher: nn.Module, student: nn.Module, pairs: Pairs) -> None:
    student.eval()
    kr = make(teacher, student, pairs)
    kr.train()
    assert not student.training
    for part in (teacher, next(teacher.children())):
        part.train()
        kr(*pairs[0])
        assert not any(module.training for module in teacher.modules())


def test_positions_are_compared_with_the_teacher_at_work(
    teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    images, labels = pairs[0]
    kr = make(teacher, student, pairs, where_weight=3.0)
    outputs = kr.student(images), kr.teacher(images)
    assert [len(of.stages) for of in outputs] == [2, 2], "layer1 and layer2"
    term = kr.terms(*outputs, labels)["where"]
    assert (term > 0.0).all()
    light = make(teacher, student, pairs, where_weight=1.0)
    torch.testing.assert_close(light.terms(*outputs, labels)["where"], term / 3.0)
    copied = make(teacher, copy.deepcopy(teacher).eval(), pairs, where_weight=1.0)
    both = copied.student(images), copied.teacher(images)
    assert copied.terms(*both, labels)["where"].abs().max() < 1e-5
    fewer = make(teacher, student, pairs, where_weight=1.0, student_taps=["layer2.0"])
    assert [len(of.stages) for of in (fewer.student(images), fewer.teacher(images))] == [1, 2]
    assert torch.isfinite(fewer(images, labels)), "of one stage against two"
    without = make(teacher, student, pairs, where_weight=0.0)
    assert without.student(images).stages == ()
    assert "where" not in without.terms(*outputs, labels)
    bare = [replace(of, stages=()) for of in outputs]
    with pytest.raises(UserError, match=r"0 stages.* kr\.student\(images\).*where_weight=0"):
        kr.terms(*bare, labels)


def test_stages_without_positions_are_named(student: nn.Module, pairs: Pairs) -> None:
    torch.manual_seed(0)
    kr = make(learn(LikeViT(), pairs, 5), student, pairs, where_weight=1.0)
    assert "has no grid of positions as an image of 12x12 has" in repr(kr)


def test_a_student_without_blocks_learns_from_one_group(teacher: nn.Module, pairs: Pairs) -> None:
    student = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))
    kr = make(teacher, student, pairs, granularity=1, where_weight=1.0)
    assert "student: it has no taps (no block was found" in repr(kr)
    images, labels = pairs[0]
    loss = kr(images, labels)
    loss.backward()
    assert student[1].weight.grad is not None
    again = KRLoss.from_state(teacher, student, kr.state_dict())
    torch.testing.assert_close(again(images, labels), loss)
    with pytest.raises(UserError, match="student: no block was found"):
        make(teacher, student, pairs, granularity=2)


def test_tokens_of_an_oblong_image_are_compared_as_its_map(student: nn.Module) -> None:
    class Tokens(nn.Sequential):
        tap_paths = ("0",)

    def network() -> nn.Module:
        patches = nn.Sequential(nn.Conv2d(1, 5, 2, 2), nn.Flatten(2), Turned())
        return Tokens(patches, Turned(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(5, 3))

    settings = {"granularity": 1, "where_weight": 1.0, "allow_poor_teacher": True}
    images, labels = torch.randn(60, 1, 8, 18), torch.arange(60) % 3
    kr = make(network(), network(), [(images, labels)], **settings)
    tokens = kr.teacher(images).stages[0]
    assert tokens.shape == (60, 36, 5), "4 rows of 9, and not 6 of 6"
    expected = where_distributions([tokens.transpose(1, 2).unflatten(2, (4, 9))])
    torch.testing.assert_close(kr.knowledge(images)[1], expected)
    (pair,) = kr.method.where.pairs
    assert pair.positions == (4, 9)


def test_taps_say_what_they_know(teacher: nn.Module, student: nn.Module, pairs: Pairs) -> None:
    kr = make(teacher, student, pairs, val_loader=make_pairs(seed=3))
    assert [tap.path for tap in kr.taps] == ["layer1.0", "layer1.1", "layer2.0", ""]
    assert all(0.0 <= tap.information_gain <= 1.0 for tap in kr.taps)
    images, labels = (torch.cat(parts) for parts in zip(*make_pairs(seed=3), strict=True))
    accuracy = (teacher(images).argmax(dim=1) == labels).float().mean()
    assert kr.taps[-1].accuracy == pytest.approx(float(accuracy), abs=1e-6)
    assert "layer2.0" in repr(kr)


def test_bf16(teacher: nn.Module, student: nn.Module, pairs: Pairs) -> None:
    images, labels = pairs[0]
    kr = make(teacher, student, pairs)
    exact = kr(images, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = kr(images, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.1, atol=0.1)
    probes = [p.clone() for p in kr.probes.buffers()]
    kr.to(torch.bfloat16)
    student.to(torch.bfloat16)
    assert next(teacher.parameters()).dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(probes, kr.probes.buffers(), strict=True))
    loss = kr(images.bfloat16(), labels)
    torch.testing.assert_close(loss, exact, rtol=0.1, atol=0.1)
    loss.backward()


def test_the_teacher_moves_with_it(teacher: nn.Module, student: nn.Module, pairs: Pairs) -> None:
    kr = make(teacher, student, pairs).to("meta")
    assert next(teacher.parameters()).is_meta
    assert not next(student.parameters()).is_meta
    assert all(tensor.is_meta for tensor in (*kr.parameters(), *kr.buffers()))
    student.to("meta")
    images = pairs[0][0].to("meta")
    assert kr.student(images).logits.is_meta
    assert kr.teacher(images).logits.is_meta


# torch.compile reads `.grad` of a graph's inputs. It silences the resulting warning, but pytest
# turns it on again.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("in_place", [False, True])
def test_code_compiled_without_taps_is_named(
    in_place: bool, teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    torch._dynamo.reset()
    images, labels = pairs[0]
    if in_place:
        student.compile(backend="eager")
    wrapped = student if in_place else torch.compile(student, backend="eager")
    kr = make(teacher, wrapped, pairs)
    assert torch.isfinite(kr(images, labels))
    torch._dynamo.reset()
    wrapped(images)
    with pytest.raises(UserError, match=r"compiled and was run without taps.*kr.student\(images\)"):
        kr(images, labels)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("what", ["networks", "loss"])
def test_compiled(what: str, teacher: nn.Module, student: nn.Module, pairs: Pairs) -> None:
    torch._dynamo.reset()
    images, labels = pairs[0]
    expected = make(teacher, student, pairs)(images, labels)
    expected.backward()
    wanted = grads(student)
    student.zero_grad()
    if what == "networks":
        teacher, wrapped = (torch.compile(m, backend="eager") for m in (teacher, student))
        kr: Any = make(teacher, wrapped, pairs)
    else:
        kr = torch.compile(make(teacher, student, pairs), backend="eager")
    for _ in range(2):
        student.zero_grad()
        loss = kr(images, labels)
        loss.backward()
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(grads(student), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("progress", [-0.1, 1.01, 2, 30, float("nan"), float("inf"), "x", None])
def test_how_far_a_training_is_is_a_share(
    progress: Any, teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    """The number of an epoch would otherwise count as the end of the training, or beyond it."""
    with pytest.raises(UserError, match=r"KRLoss\.begin_epoch: progress: "):
        make(teacher, student, pairs).begin_epoch(progress)


def test_schedules_follow_the_epochs(
    teacher: nn.Module, student: nn.Module, pairs: Pairs, caplog: pytest.LogCaptureFixture
) -> None:
    kr = make(teacher, student, pairs)
    seen = []
    for progress in (0.0, 0.35, 0.7, 1.0):
        kr.begin_epoch(progress)
        kr.zero_grad()
        kr(*pairs[0]).backward()
        heads = [head.grad for head in kr.parameters() if head.grad is not None]
        seen.append(sum(float(head.abs().sum()) for head in heads))
    assert seen[0] > seen[1] > 0.0
    assert seen[2:] == [0.0, 0.0], "the classifier is taught alone"
    assert caplog.text == ""


class Shared(LikeResNet):
    """A network that another thread also runs, on other images, before a forward pass ends."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = super().forward(images)
        other = Thread(target=super().forward, args=(torch.ones_like(images[:1]),))
        other.start()
        other.join()
        return logits


def test_threads_may_share_networks(teacher: nn.Module, student: nn.Module, pairs: Pairs) -> None:
    """For example several students of one teacher, one thread each, or validation in training."""
    alone = make(teacher, student.eval(), pairs, where_weight=1.0)
    both = Shared(6), Shared(3).eval()
    for shared, network in zip(both, (teacher, student), strict=True):
        shared.load_state_dict(network.state_dict())
    kr = make(*both, pairs, where_weight=1.0)
    assert (kr.taps, kr.student_paths) == (alone.taps, alone.student_paths)
    images, labels = pairs[0]
    torch.testing.assert_close(kr(images, labels), alone(images, labels))


def test_a_copy_learns_for_itself(teacher: nn.Module, student: nn.Module, pairs: Pairs) -> None:
    kr = make(teacher, student, pairs)
    twin = copy.deepcopy(kr)
    twin(*pairs[0]).backward()
    assert grads(student, kr) == []
    assert len(grads(twin)) == 4


@pytest.mark.usefixtures("process_group")
def test_data_parallel_alone(teacher: nn.Module, student: nn.Module, pairs: Pairs) -> None:
    parallel = nn.parallel.DistributedDataParallel
    wrapped = parallel(student)
    kr = parallel(make(teacher, wrapped, pairs))
    loss = kr(*pairs[0])
    loss.backward()
    assert torch.equal(loss, make(teacher, student, pairs)(*pairs[0]))
    assert len(grads(student)) == len(list(student.parameters()))


def test_another_default_dtype(teacher: nn.Module, student: nn.Module, pairs: Pairs) -> None:
    expected = make(teacher, student, pairs, auxiliary_weight=0.0)(*pairs[0]).detach()
    torch.set_default_dtype(torch.float64)
    try:
        found = make(teacher, student, pairs, auxiliary_weight=0.0)(*pairs[0]).detach()
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found, expected)


def test_another_default_device(teacher: nn.Module, student: nn.Module, pairs: Pairs) -> None:
    """Nothing is put on it: all that is drawn and fitted is on the networks' device."""
    settings = {"where_weight": 1.0, "parameter_weight": 0.1}
    expected = make(teacher, student, pairs, **settings)
    with torch.device("meta"):
        kr = make(teacher, student, pairs, **settings)
        again = KRLoss.from_state(teacher, student, kr.state_dict())
        losses = [each(*pairs[0]) for each in (kr, again)]
    for loss in losses:
        torch.testing.assert_close(loss, expected(*pairs[0]))


@pytest.mark.usefixtures("process_group")
def test_a_student_whose_weights_are_spread_over_workers(
    teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    from torch.distributed.fsdp import fully_shard

    loss = make(teacher, student, pairs)(*pairs[0])
    loss.backward()
    expected = grads(student)
    student.zero_grad()
    fully_shard(student)
    kr = make(teacher, student, pairs)
    again = kr(*pairs[0])
    again.backward()
    torch.testing.assert_close(again, loss)
    for found, gradient in zip(grads(student), expected, strict=True):
        torch.testing.assert_close(found.full_tensor(), gradient)  # type: ignore[attr-defined]
