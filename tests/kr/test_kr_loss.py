"""KRLoss: Knowledge Representing in anybody's own loop."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from foreign_networks import LikeResNet, LikeViT, WithDict, WithObject
from programs import exported, scripted, traced
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import krscale
from krscale import KRLoss
from krscale.config.methods import KRSettings
from krscale.config.older import FORMER_OF_KR
from krscale.errors import UserError
from krscale.knowledge.where import where_distributions
from krscale.models import build_model

Pairs = list[tuple[Tensor, Tensor]]
NUM_IMAGES, BATCH = 120, 40


def make_pairs(seed: int = 0) -> Pairs:
    """Noise with one of three gratings: easy, but not for a single pixel."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(NUM_IMAGES) % 3
    wave = torch.arange(12) * torch.tensor([1.0, 2.0, 3.0])[:, None]
    images = torch.randn(NUM_IMAGES, 1, 12, 12, generator=generator) * 0.5
    images += wave.sin()[labels][:, None, None, :]
    return [(images[i : i + BATCH], labels[i : i + BATCH]) for i in range(0, NUM_IMAGES, BATCH)]


def learn(network: nn.Module, pairs: Pairs, steps: int = 40) -> nn.Module:
    optimiser = torch.optim.Adam(network.parameters(), 0.02)
    for step in range(steps):
        images, labels = pairs[step % len(pairs)]
        optimiser.zero_grad()
        cross_entropy(network(images), labels).backward()
        optimiser.step()
    return network


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return make_pairs()


@pytest.fixture(scope="module")
def trained(pairs: Pairs) -> nn.Module:
    torch.manual_seed(0)
    return learn(LikeResNet(6), pairs)


@pytest.fixture
def teacher(trained: nn.Module) -> nn.Module:
    return copy.deepcopy(trained)


@pytest.fixture
def student() -> nn.Module:
    torch.manual_seed(1)
    return LikeResNet(3)


class Turned(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2)


def make(teacher: nn.Module, student: nn.Module, pairs: Pairs, **settings: Any) -> KRLoss:
    torch.manual_seed(2)
    return KRLoss.from_networks(teacher, student, pairs, **{"granularity": 3, **settings})


def grads(*modules: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for m in modules for p in m.parameters() if p.grad is not None]


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


class Doubled(nn.Module):
    """A block with twice its channels."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self.block(images)] * 2, dim=1)


class Halved(Doubled):
    """A block that takes what `Doubled` gives as before."""

    def forward(self, images: Tensor) -> Tensor:
        return self.block(images[:, : images.shape[1] // 2])


def put(network: nn.Module, path: str, part: type[Doubled]) -> None:
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, part(network.get_submodule(path)))


@pytest.mark.parametrize("granularity", [1, 3])
@pytest.mark.parametrize("which", ["teacher", "student"])
def test_a_classifier_that_was_replaced_is_named(
    which: str, granularity: int, teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    kr = make(teacher, student, pairs, granularity=granularity)
    network = teacher if which == "teacher" else student
    network.fc = nn.Linear(network.fc.in_features, 5)
    message = f"KRLoss: the {which}'s classifier gives 5 classes, and gave 3 when this loss was"
    with pytest.raises(UserError, match=message):
        kr(*pairs[0])


@pytest.mark.parametrize("which", ["teacher", "student"])
def test_a_tapped_block_that_was_replaced_is_named(
    which: str, teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    kr = make(teacher, student, pairs, granularity=4, where_weight=0.0)
    network, tapped = (
        (teacher, kr._networks[0]) if which == "teacher" else (student, kr._networks[1])
    )
    first, second = tapped.paths[:2]
    put(network, first, Doubled)
    put(network, second, Halved)
    shape = list(tapped.shapes[0])
    wide = [2 * shape[0], *shape[1:]]
    with pytest.raises(UserError) as caught:
        kr(*pairs[0])
    found = f"KRLoss: the {which}'s tap {first!r} gives {wide} for an image, and gave {shape} when"
    assert str(caught.value).startswith(found)


def test_a_block_that_no_head_reads_may_be_another(
    teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    kr = make(teacher, student, pairs, granularity=1, where_weight=0.0)
    expected = kr(*pairs[0])
    first, second = kr.student_paths[:2]
    put(student, first, Doubled)
    put(student, second, Halved)
    torch.testing.assert_close(kr(*pairs[0]), expected)


def test_images_too_small_for_the_grids_are_said_to_be_of_another_size(
    teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    """Outputs of other images, which `kr.student` and `kr.teacher` take, are no other network's."""
    kr, (images, labels) = make(teacher, student, pairs), pairs[0]
    small = images[..., :4, :4]
    with pytest.raises(UserError, match="replaced since, or the images are of another size"):
        kr.loss(kr.student(small), kr.teacher(small), labels)


def test_what_is_on_another_device_is_named(
    teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    kr, (images, labels) = make(teacher, student, pairs), pairs[0]
    with pytest.raises(
        UserError, match=r"student's logits on cpu, .* labels on meta, this loss on"
    ):
        kr(images, labels.to("meta"))
    there = replace(kr.student(images), logits=kr.student(images).logits.to("meta"))
    with pytest.raises(UserError, match=r"student's logits on meta, the teacher's on cpu"):
        kr.loss(there, kr.teacher(images), labels)


def test_taps_that_can_be_read_once_are_those_that_were_given(
    teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    """Of an iterator, the check of the paths left none, and others were found instead."""
    chosen = [tap.path for tap in make(teacher, student, pairs).taps][1:-1]
    found = make(teacher, student, pairs, teacher_taps=iter(chosen), student_taps=map(str, chosen))
    assert [tap.path for tap in found.taps] == [*chosen, ""]
    assert list(found.student_paths) == chosen


def test_defaults_are_the_configs(teacher: nn.Module, student: nn.Module, pairs: Pairs) -> None:
    kr = KRLoss.from_networks(teacher, student, pairs)
    assert kr.settings == KRSettings()
    assert kr.reduction == "mean"


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
    """One group without sparsity of one tap: the classifier's own distribution is the target."""
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


def test_state_comes_back(teacher: nn.Module, student: nn.Module, pairs: Pairs) -> None:
    kr = make(teacher, student, pairs, sparsity=0.5)
    with torch.no_grad():
        next(kr.parameters()).add_(0.1)
    file = io.BytesIO()
    torch.save(kr.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert not any("layer" in name for name in state), "the networks are not in it"
    other = make(teacher, student, make_pairs(seed=5), sparsity=0.5)  # fitted to other images
    assert other(*pairs[0]) != kr(*pairs[0])
    other.load_state_dict(state)
    assert torch.equal(other(*pairs[0]), kr(*pairs[0]))
    built = KRLoss.from_state(teacher, student, state)
    assert torch.equal(built(*pairs[0]), kr(*pairs[0]))
    assert built.settings == kr.settings
    assert built.taps == kr.taps
    # A state within another module's, as a Lightning checkpoint has it.
    holder, holding = nn.ModuleDict({"kr": other}), nn.ModuleDict({"kr": kr})
    holder.load_state_dict(holding.state_dict())


def test_a_state_of_the_first_formulation_is_what_it_was(
    teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    """Such a state lacks the settings that came later; they are then as KR was, not as it is."""
    kr = make(teacher, student, pairs, **FORMER_OF_KR)
    assert kr.probes.grid == 1
    state = kr.state_dict()
    for name in FORMER_OF_KR:
        del state["_extra_state"]["settings"][name]
    built = KRLoss.from_state(teacher, student, state)
    assert torch.equal(built(*pairs[0]), kr(*pairs[0]))
    assert built.settings == kr.settings
    make(teacher, student, pairs, **FORMER_OF_KR).load_state_dict(state)
    with pytest.raises(UserError, match="another settings"):
        make(teacher, student, pairs).load_state_dict(state)


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


def test_a_state_of_something_else_is_refused(
    teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    state = make(teacher, student, pairs, sparsity=0.5).state_dict()
    with pytest.raises(UserError, match=r"another settings.*from_state"):
        make(teacher, student, pairs).load_state_dict(state)
    with pytest.raises(UserError, match="not the state of a KRLoss"):
        KRLoss.from_state(teacher, student, student.state_dict())
    with pytest.raises(UserError, match="teacher: unknown tap"):
        KRLoss.from_state(LikeViT(), student, state)


def test_taps_say_what_they_know(teacher: nn.Module, student: nn.Module, pairs: Pairs) -> None:
    kr = make(teacher, student, pairs, val_loader=make_pairs(seed=3))
    assert [tap.path for tap in kr.taps] == ["layer1.0", "layer1.1", "layer2.0", ""]
    assert all(0.0 <= tap.information_gain <= 1.0 for tap in kr.taps)
    images, labels = (torch.cat(parts) for parts in zip(*make_pairs(seed=3), strict=True))
    accuracy = (teacher(images).argmax(dim=1) == labels).float().mean()
    assert kr.taps[-1].accuracy == pytest.approx(float(accuracy), abs=1e-6)
    assert "layer2.0" in repr(kr)


@pytest.mark.parametrize("network", [WithDict, WithObject, LikeViT])
def test_networks_of_others(network: type[nn.Module], teacher: nn.Module, pairs: Pairs) -> None:
    torch.manual_seed(1)
    student = network()
    kr = make(teacher, student, pairs)
    kr(*pairs[0]).backward()
    assert grads(student)


def test_networks_of_the_zoo(pairs: Pairs) -> None:
    torch.manual_seed(0)
    options: Any = {"num_classes": 3, "in_channels": 1, "options": {}}
    large = learn(build_model("resnet", width=4, **options), pairs)
    small = build_model("mobilenet", width=2, **options)
    further = {"parameter_weight": 0.1, "where_weight": 0.5}
    kr = make(large, small, pairs, granularity="stage", mixing="geometric", **further)
    kr(*pairs[0]).backward()
    assert set(kr.shown()) == {"ce", "kr", "where", "parameter", "kr/active_classes"}


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


# torch.compile looks at `.grad` of what a graph is given; it silences the warning, but pytest
# turns it on again.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_code_compiled_without_taps_is_named(
    teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    torch._dynamo.reset()
    images, labels = pairs[0]
    wrapped = torch.compile(student, backend="eager")
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


def in_turn(num_classes: int, num_each: int = 40) -> Pairs:
    """A loader that takes the classes in turn, as balanced samplers do."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(num_classes * num_each) % num_classes
    images = 0.3 * torch.randn(len(labels), 1, 12, 12, generator=generator)
    images[torch.arange(len(labels)), 0, labels] += 2.0  # one bright row
    return list(zip(images.split(40), labels.split(40), strict=True))


@pytest.mark.parametrize("num_classes", [2, 5, 10])
def test_no_order_of_the_images_hides_a_class_from_the_probes(num_classes: int) -> None:
    torch.manual_seed(0)
    pairs = in_turn(num_classes)
    teacher = learn(LikeResNet(6, num_classes=num_classes), pairs, steps=80)
    order = torch.randperm(len(pairs) * 40)
    images, labels = (torch.cat(part)[order] for part in zip(*pairs, strict=True))
    shuffled = list(zip(images.split(40), labels.split(40), strict=True))
    found = [
        make(teacher, LikeResNet(3, num_classes=num_classes), each, granularity=2)
        for each in (pairs, shuffled)
    ]
    accuracies = [[tap.accuracy for tap in kr.taps] for kr in found]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.15)
    assert min(kr.taps[-2].information_gain for kr in found) > 0.3
    shifted = [(images, (labels + 1) % num_classes) for images, labels in pairs]
    with pytest.raises(UserError, match="its classes in the order of these labels"):
        make(teacher, LikeResNet(3, num_classes=num_classes), shifted)


def test_a_state_is_bound_to_the_weights_of_its_teacher(
    teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    state = make(teacher, student, pairs).state_dict()
    KRLoss.from_state(copy.deepcopy(teacher).to(torch.bfloat16), student.bfloat16(), state)
    permuted = copy.deepcopy(teacher)
    *_, last = (m for m in permuted.modules() if isinstance(m, nn.Linear))
    with torch.no_grad():
        last.weight.copy_(last.weight.roll(1, dims=0))
    for other in (LikeResNet(6), permuted):
        with pytest.raises(UserError, match="teacher with other weights"):
            KRLoss.from_state(other, student, state)


def test_outputs_of_other_images_are_refused(
    teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    """The teacher's outputs for one image would be compared with the student's for each."""
    images, labels = pairs[0]
    kr = make(teacher, student, pairs)
    own, theirs = kr.student(images), kr.teacher(images)
    for fewer in (0, 1, 39):
        with pytest.raises(UserError, match=rf"student's.* 40 images.* teacher's of {fewer};"):
            kr.loss(own, kr.teacher(images[:fewer]), labels)
        with pytest.raises(UserError, match=rf"student's.* {fewer} images.* teacher's of 40;"):
            kr.loss(kr.student(images[:fewer]), theirs, labels[:fewer])
    for other in (own.logits, None, (own.logits, own.features)):
        with pytest.raises(UserError, match=r"student's outputs are what kr\.student\(images\)"):
            kr.loss(other, theirs, labels)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"teacher's outputs are what kr\.teacher\(images\)"):
            kr.loss(own, other, labels)  # type: ignore[arg-type]


@pytest.mark.parametrize("progress", [-0.1, 1.01, 2, 30, float("nan"), float("inf"), "x", None])
def test_how_far_a_training_is_is_a_share(
    progress: Any, teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    """The number of an epoch would be taken as the end of the training, or as beyond it."""
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


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "auxiliary_schedule='falling'"),
        ({"auxiliary_schedule": "coarsening"}, "auxiliary_schedule='coarsening'"),
        ({"granularity": 1, "sparsity_schedule": "rising"}, "KRLoss: sparsity_schedule='rising':"),
        ({"granularity": 1, "where_weight": 1.0, "where_schedule": "falling"}, "where_schedule="),
        ({"granularity": 1}, ""),
        ({"auxiliary_schedule": "constant"}, ""),
        ({"auxiliary_weight": 0.0}, ""),
        ({"granularity": 1, "sparsity_schedule": "rising", "sparsity": 0.0}, ""),
    ],
)
def test_schedules_that_nobody_drives_are_said_once(
    settings: dict[str, Any], named: str, teacher: nn.Module, student: nn.Module, pairs: Pairs,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    kr = make(teacher, student, pairs, **settings)
    with torch.no_grad():
        kr(*pairs[0])
    assert caplog.text == "", "nothing is trained"
    kr(*pairs[0])
    kr(*pairs[1])
    assert len(caplog.records) == bool(named)
    assert named in caplog.text
    assert not named or "kr.begin_epoch(" in caplog.text


def test_a_student_that_cannot_learn_is_said_once(
    teacher: nn.Module, student: nn.Module, pairs: Pairs, caplog: pytest.LogCaptureFixture
) -> None:
    kr = make(teacher, student, pairs)
    with torch.no_grad():
        kr(*pairs[0])
    assert caplog.messages == []
    student.requires_grad_(False)
    for _ in range(3):
        kr(*pairs[0])
    assert [m for m in caplog.messages if "logits have no gradient" in m] == caplog.messages
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("learning", [True, False])
@pytest.mark.parametrize("granularity", [1, 3])
def test_heads_that_no_optimiser_has_are_said_once(
    learning: bool, granularity: int, teacher: nn.Module, student: nn.Module, pairs: Pairs,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The student would be taught through heads that stay as they were drawn."""
    kr = make(teacher, student, pairs, granularity=granularity)
    kr.begin_epoch(0.0)
    parameters = [*student.parameters(), *(kr.parameters() if learning else ())]
    optimiser = torch.optim.SGD(parameters, lr=0.01)
    images, labels = pairs[0][0][:4], pairs[0][1][:4]
    for step in range(110):
        kr(images, labels).backward()
        if step % 16 == 15:
            optimiser.step()
            optimiser.zero_grad()
    assert len(caplog.records) == (not learning and granularity > 1)
    assert not caplog.text or "heads have not changed in 100 steps" in caplog.text


class Around(nn.Module):
    """What a trainer wraps: the student and its loss within one module."""

    def __init__(self, student: nn.Module, kr: KRLoss) -> None:
        super().__init__()
        self.student, self.kr = student, kr

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.kr(images, labels)
        return loss


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(
    ("order", "apart"),
    [
        ("student first", ""),
        ("around both", ""),
        ("loss first", "the student"),
        ("student alone", "its auxiliary heads"),
        ("nothing", "the student and its auxiliary heads"),
    ],
)
def test_workers_that_train_apart_are_said_once(
    order: str, apart: str, teacher: nn.Module, student: nn.Module, pairs: Pairs,
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    parallel = nn.parallel.DistributedDataParallel
    run = parallel(student) if order in ("student first", "student alone") else student
    kr = make(teacher, run, pairs)
    kr.begin_epoch(0.0)
    if order == "loss first":
        parallel(student)
    wrapped: nn.Module = kr
    if order in ("student first", "loss first"):
        wrapped = parallel(kr)
    elif order == "around both":
        wrapped = parallel(Around(student, kr))
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 2)
    for _ in range(2):
        wrapped(*pairs[0]).backward()
    said = [record.getMessage() for record in caplog.records if "workers" in record.getMessage()]
    assert len(said) == bool(apart)
    assert not apart or f"averages the gradients of {apart}, so" in said[0]


class Shared(LikeResNet):
    """A network that another thread runs as well, on other images, before a run of it ends."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = super().forward(images)
        other = Thread(target=super().forward, args=(torch.ones_like(images[:1]),))
        other.start()
        other.join()
        return logits


def test_threads_may_share_networks(teacher: nn.Module, student: nn.Module, pairs: Pairs) -> None:
    """Several students of one teacher in a thread each, and a validation beside a training."""
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


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_data_parallel_alone(teacher: nn.Module, student: nn.Module, pairs: Pairs) -> None:
    parallel = nn.parallel.DistributedDataParallel
    wrapped = parallel(student)
    kr = parallel(make(teacher, wrapped, pairs))
    loss = kr(*pairs[0])
    loss.backward()
    assert torch.equal(loss, make(teacher, student, pairs)(*pairs[0]))
    assert len(grads(student)) == len(list(student.parameters()))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sparsty": 0.1}, "KRLoss: unknown setting 'sparsty'. Did you mean 'sparsity'?"),
        ({"sparsity": 1.5}, r"KRLoss: sparsity: .*less than 1 \(got 1\.5\)"),
        ({"granularity": 9}, "granularity 9 is out of range: the teacher has 4 taps"),
        ({"granularity": "stages"}, "granularity"),
        ({"posterior": {"dkd": 1.0}}, r"krscale\.losses\.dkd"),
        ({"reduction": "sum"}, "unknown reduction 'sum'"),
        ({"teacher_taps": ("layer1.7",)}, "teacher: unknown tap 'layer1.7'"),
        ({"student_taps": ("layer1.7",)}, "student: unknown tap 'layer1.7'"),
        ({"max_images": 10}, "it gave 40 images"),
        ({"max_images": 0}, "KRLoss: max_images: .*greater than or equal to 1"),
        ({"teacher_taps": "layer1.1"}, r"teacher: taps are a list of paths: \['layer1.1'\]"),
        ({"teacher_taps": None}, r"teacher: taps are a list of paths, .*, not None"),
        ({"student_taps": iter([1])}, r"student: taps are a list of paths, .*, not \[1\]"),
        ({"ce_weight": 0.0, "kr_weight": 0.0}, "all are 0, so nothing would be learnt"),
    ],
)
def test_settings_are_refused(
    settings: dict[str, Any], said: str, teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    if settings.get("max_images"):
        settings, said, pairs = {}, "it gave 12 images", [(pairs[0][0][:12], pairs[0][1][:12])]
    with pytest.raises(UserError, match=said):
        make(teacher, student, pairs, **settings)


@pytest.mark.parametrize("wrong", [None, "resnet", 3, nn.Linear, nn.Linear(3, 3, device="meta")])
def test_what_is_no_network_is_refused(
    wrong: Any, teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    with pytest.raises(UserError, match=r"teacher: .*(is needed|have no values)"):
        make(wrong, student, pairs)
    with pytest.raises(UserError, match=r"student: .*(is needed|have no values)"):
        make(teacher, wrong, pairs)
    with pytest.raises(UserError, match=r"student: .*(is needed|have no values)"):
        KRLoss.from_state(teacher, wrong, {})
    with pytest.raises(UserError, match="not the state of a KRLoss"):
        KRLoss.from_state(teacher, student, wrong)


def relabelled(pairs: Pairs, change: Any) -> Pairs:
    return [(images, change(labels)) for images, labels in pairs]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: [], "train_loader: it gave no batch"),
        (lambda p: [*p[:1], (p[1][0][..., :10], p[1][1])], "images of 1x12x10, .* of 1x12x12"),
        (
            lambda p: relabelled(p, lambda y: y + 1),
            "label 3 is out of range.* 3 classes, so 0 to 2",
        ),
        (lambda p: relabelled(p, lambda y: y - 1), "label -1 is out of range"),
        (lambda p: relabelled(p, lambda y: y.float()), "labels are one whole number"),
        (lambda p: relabelled(p, lambda y: torch.eye(3)[y]), "labels are one whole number"),
        (lambda p: relabelled(p, lambda y: y[:-1]), r"40 images, not torch.int64 of shape \[39\]"),
        (lambda p: [(x.flatten(1), y) for x, y in p], r"images are \[B, C, H, W\]"),
        (lambda p: [((x * 9).byte(), y) for x, y in p], "normalised"),
        (lambda p: [{"image": x, "label": y} for x, y in p], r"is dict; .*batch\['image'\]"),
        (lambda p: [x for x, _ in p], "is Tensor"),
        (lambda p: [(p[0][0][:0], p[0][1][:0]), *p], "its first batch has no image"),
    ],
)
def test_loaders_are_refused(
    change: Any, said: str, teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    with pytest.raises(UserError, match=said):
        make(teacher, student, change(pairs))


def test_batches_are_refused(teacher: nn.Module, student: nn.Module, pairs: Pairs) -> None:
    images, labels = pairs[0]
    kr = make(teacher, student, pairs)
    for wrong, said in [
        ((images[:, :, :10], labels), "KRLoss: images of 1x10x12"),
        ((images, labels + 1), "KRLoss: label 3 is out of range"),
        ((images, labels[:5]), "KRLoss: labels are one whole number for each of the 40"),
    ]:
        with pytest.raises(UserError, match=said):
            kr(*wrong)


def test_other_classes_are_refused(teacher: nn.Module, pairs: Pairs) -> None:
    student = build_model("resnet", num_classes=5, in_channels=1, width=2, options={})
    with pytest.raises(UserError, match="teacher has 3 classes and the student 5"):
        make(teacher, student, pairs)


def test_classes_that_were_not_reached_are_refused(
    teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    images, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    order = labels.argsort()
    by_class = list(zip(images[order].split(40), labels[order].split(40), strict=True))
    with pytest.raises(UserError, match=r"first 80 images hold none of class 2; shuffle"):
        make(teacher, student, by_class, max_images=80)


def test_a_loader_that_can_be_read_once(
    teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    once = make(teacher, student, (pair for pair in pairs))  # type: ignore[arg-type]
    assert once.taps == make(teacher, student, pairs).taps


@pytest.mark.parametrize("harm", ["classes", "pixels"])
def test_a_teacher_that_knows_more_than_it_says(
    harm: str, teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    if harm == "classes":
        pairs = relabelled(pairs, lambda labels: (labels + 1) % 3)
    else:
        pairs = [(3.0 * images.flip(3) + 4.0, labels) for images, labels in pairs]
    with pytest.raises(UserError, match=r"teacher: its classifier is right for .*normalised"):
        make(teacher, student, pairs)
    make(teacher, student, pairs, allow_poor_teacher=True)


class After(nn.Module):
    """A network, and what somebody did with its logits."""

    def __init__(self, network: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.network, self.last = network, last

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.network(images))
        return outputs


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_probabilities_are_no_logits(
    role: str, teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    given = {"teacher": teacher, "student": student}
    given[role] = After(given[role], nn.Softmax(dim=1))
    with pytest.raises(UserError, match=f"^{role}: in eval mode the network gives probabilities"):
        make(given["teacher"], given["student"], pairs)


class Noise(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values * (1.0 + 0.1 * torch.randn_like(values))


class Counts(nn.Module):
    times = 0

    def forward(self, values: Tensor) -> Tensor:
        self.times += 1
        return values * (1.0 + 0.1 * self.times)


class AlwaysDrops(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return nn.functional.dropout(values, 0.1)


class Centres(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values - values.mean(dim=0)


class Squeezes(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values[:, :, None].squeeze()


UNSTEADY = {
    Noise: "gives the same images other outputs when it is run again",
    Counts: "gives the same images other outputs when it is run again",
    AlwaysDrops: "gives the same images other outputs when it is run again",
    Centres: "gives an image other outputs by itself than among others",
    partial(nn.BatchNorm1d, 3, track_running_stats=False): "does not run on one image by itself",
    Squeezes: "does not run on one image by itself: .*the network's logits are \\[3\\]",
}


@pytest.mark.parametrize("share", ["a block", "a weight", "a view", "running statistics"])
def test_a_student_with_layers_of_the_teacher(
    share: str, teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    state = make(teacher, student, pairs).state_dict()
    other = copy.deepcopy(student)
    if share == "a block":
        other.layer1, other.layer2, other.fc = teacher.layer1, teacher.layer2, teacher.fc
    elif share == "a weight":
        other.fc.bias = teacher.fc.bias
    elif share == "a view":
        other.fc.bias = nn.Parameter(teacher.fc.bias.detach())
    else:
        norm = nn.BatchNorm2d(1, affine=False)
        teacher, other = nn.Sequential(norm, teacher), nn.Sequential(norm, other)
    for made in (
        lambda: make(teacher, other, pairs),
        lambda: KRLoss.from_state(teacher, other, state),
    ):
        with pytest.raises(UserError, match=r"are the teacher's own, so that training it would"):
            made()


def test_a_student_without_values_yet(teacher: nn.Module, pairs: Pairs) -> None:
    """Lazy layers get theirs when they first run."""
    student = nn.Sequential(
        nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU()),
        nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3)),
    )
    make(teacher, student, pairs, granularity=2)(*pairs[0]).backward()
    assert grads(student)


class RunsWithFewWeights(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.definite = network, nn.Parameter(torch.eye(3))

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.network(images) @ torch.linalg.cholesky(self.definite)
        return outputs


def test_a_student_that_does_not_run_with_any_weights(
    teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    assert make(teacher, RunsWithFewWeights(student), pairs).student_paths


def test_images_of_nan_are_not_taken_for_changed_ones(
    teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    broken = [(images.clone(), labels) for images, labels in pairs]
    broken[0][0][0, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match="NaN or infinity"):
        make(teacher, student, broken)


def test_frozen_weights_may_be_shared(teacher: nn.Module, student: nn.Module, pairs: Pairs) -> None:
    student.fc.bias = teacher.fc.bias.requires_grad_(False)
    assert float(make(teacher, student, pairs)(*pairs[0]).detach()) > 0.0


class Normalises(nn.Module):
    """Takes the mean from the images, which both networks have as one tensor of a module."""

    def __init__(self, network: nn.Module, mean: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.network(images - self.mean)
        return outputs


class Follows(Normalises):
    """Moves that mean towards the one of each batch that it is trained on."""

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(images.detach().mean(), 0.1)
        return super().forward(images)


def test_two_images_that_differ_are_looked_for_in_further_batches(
    teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    images, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    images = torch.cat([images[:1].expand(3, -1, -1, -1), images[3:]])
    expected = make(teacher, student, [(images, labels)], granularity=2)
    for size in (1, 2, 40):
        once = iter(list(zip(images.split(size), labels.split(size), strict=True)))
        found = make(teacher, student, once, granularity=2)
        # The size of a batch changes the order of sums: the last bit depends on the processor.
        gains = [tap.information_gain for tap in expected.taps]
        same = [
            replace(tap, information_gain=gain) for tap, gain in zip(found.taps, gains, strict=True)
        ]
        assert same == list(expected.taps), "of all images, those that were looked at too"
        assert [tap.information_gain for tap in found.taps] == pytest.approx(gains, abs=1e-6)
    alike = images[:1].expand(30, -1, -1, -1)
    with pytest.raises(UserError, match="teacher: taps are found with two images that differ"):
        make(teacher, student, [(alike, labels[:30])] * 40)


def test_constants_may_be_shared(teacher: nn.Module, student: nn.Module, pairs: Pairs) -> None:
    student.layer1.insert(0, nn.BatchNorm2d(3))
    student.layer1[0].eval()
    before = copy.deepcopy(student.state_dict())
    mean = torch.tensor(0.1)
    kr = make(Normalises(teacher, mean), Normalises(student, mean), pairs)
    again = KRLoss.from_state(Normalises(teacher, mean), Normalises(student, mean), kr.state_dict())
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    assert student.training
    assert not student.layer1[0].training
    assert float(again(*pairs[0]).detach()) > 0.0
    with pytest.raises(UserError, match="student's mean are the teacher's own"):
        make(Normalises(teacher, mean), Follows(student, mean), pairs)
    assert float(mean) == pytest.approx(0.1)


class NormalisesInPlace(nn.Module):
    """As `transforms.functional.normalize(..., inplace=True)` does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.network(images.sub_(0.1).div_(1.1))
        return outputs


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_images_are_left_as_they_are(
    role: str, teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    given = {"teacher": teacher, "student": student}
    given[role] = NormalisesInPlace(given[role])
    own = [(images.clone(), labels) for images, labels in pairs]
    with pytest.raises(UserError, match=f"^{role}: the network changes the images that it is"):
        make(given["teacher"], given["student"], own)


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize("last", UNSTEADY)
def test_logits_that_depend_on_more_than_the_image(
    last: Callable[[], nn.Module],
    role: str,
    teacher: nn.Module,
    student: nn.Module,
    pairs: Pairs,
) -> None:
    given = {"teacher": teacher, "student": student}
    given[role] = After(given[role], last())
    with pytest.raises(UserError, match=f"^{role}: .*{UNSTEADY[last]}"):
        make(given["teacher"], given["student"], pairs)


def test_logarithms_of_probabilities_are_logits(
    teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    kr = make(teacher, student, pairs)
    same = make(After(teacher, nn.LogSoftmax(dim=1)), student, pairs)
    torch.testing.assert_close(same(*pairs[0]), kr(*pairs[0]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("zero", [False, True])
def test_a_student_that_ends_in_a_sigmoid(
    zero: bool, teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    before = copy.deepcopy(student.state_dict())
    if zero:
        nn.init.zeros_(student.fc.weight)  # as timm begins
        nn.init.zeros_(student.fc.bias)
        make(teacher, student, pairs)
    with pytest.raises(UserError, match="student: all its outputs lie between 0 and 1 whatever"):
        make(teacher, After(student, nn.Sigmoid()), pairs)
    if not zero:
        assert all(torch.equal(before[k], v) for k, v in student.state_dict().items())


@pytest.mark.parametrize("last", [nn.ReLU, nn.Tanh, nn.LogSigmoid, nn.Softplus])
def test_other_outputs_may_be_logits(
    last: Callable[[], nn.Module], teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    make(teacher, After(student, last()), pairs)


def test_a_teacher_that_ends_in_a_sigmoid(
    teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    shares = After(teacher, nn.Sequential(nn.Hardtanh(), nn.Sigmoid()))
    with pytest.raises(UserError, match="teacher: all its outputs lie between 0 and 1"):
        make(shares, student, pairs)
    make(shares, student, pairs, allow_poor_teacher=True)


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_programs_have_no_blocks(
    role: str, teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    images = pairs[0][0]
    for program in (
        traced(teacher, images),
        exported(teacher, images),
        After(exported(teacher, images), nn.Identity()),
    ):
        given = {"teacher": teacher, "student": student} | {role: program}
        with pytest.raises(UserError, match=f"^{role}: this is a program made of a network"):
            make(given["teacher"], given["student"], pairs)


def test_transforms_that_were_scripted_stand_in_front(
    teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    """As torchvision's documentation has them."""
    transforms = scripted(nn.Sequential(nn.Identity()))
    kr = make(nn.Sequential(transforms, teacher), student, pairs)
    assert [tap.path for tap in kr.taps] == ["1.layer1.0", "1.layer1.1", "1.layer2.0", ""]
    with pytest.raises(UserError, match="no block was found"):
        make(After(traced(teacher, pairs[0][0]), nn.Identity()), student, pairs)


def test_what_is_to_be_trained_is_not_made_in_inference_mode(
    teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    with torch.inference_mode(), pytest.raises(UserError, match=r"torch\.inference_mode\(\) is on"):
        make(teacher, student, pairs)


def test_networks_that_cannot_be_used_are_refused(
    teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    with pytest.raises(UserError, match="one and the same network"):
        make(teacher, teacher, pairs)
    for role in ("teacher", "student"):
        other = build_model("resnet", num_classes=3, in_channels=3, width=2, options={})
        broken = copy.deepcopy(student)
        nn.init.constant_(broken.fc.bias, torch.nan)
        for network, said in [
            (other, r"the network does not run on images of shape \[1, 12, 12\]: .*channels"),
            (broken, "the network gives NaN or infinity"),
        ]:
            given = {"teacher": teacher, "student": student} | {role: network}
            with pytest.raises(UserError, match=f"^{role}: {said}"):
                make(given["teacher"], given["student"], pairs)


def test_images_to_measure_on_are_of_several_classes(
    teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    images, labels = torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
    order = labels.argsort(stable=True)  # as a loader of a folder gives them, unshuffled
    by_class = [(images[order[i : i + 20]], labels[order[i : i + 20]]) for i in (0, 20, 40, 60)]
    with pytest.raises(UserError, match="val_loader: the first 30 images hold none of class 1, 2"):
        make(teacher, student, pairs, val_loader=by_class, max_images=30)
    with pytest.raises(UserError, match="val_loader: all images are of class 0"):
        make(teacher, student, pairs, val_loader=by_class[:2])
    assert make(teacher, student, pairs, val_loader=by_class[1:]).information_gain.max() > 0.1
    with pytest.raises(UserError, match=r"val_loader: batches .* are needed, .*, not int"):
        make(teacher, student, pairs, val_loader=3)


def test_a_teacher_whose_weights_are_loaded_later(
    teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    state = make(teacher, student, pairs).state_dict()
    torch.manual_seed(5)
    fresh = LikeResNet(6)
    kr = make(fresh, student, pairs, allow_poor_teacher=True)
    fresh.load_state_dict(teacher.state_dict())
    with pytest.raises(UserError, match="other weights than when its probes were fitted"):
        kr(*pairs[0])
    kr.load_state_dict(state)  # with whose probes it is right again
    assert kr(*pairs[0]).isfinite()


def test_another_default_dtype(teacher: nn.Module, student: nn.Module, pairs: Pairs) -> None:
    expected = make(teacher, student, pairs, auxiliary_weight=0.0)(*pairs[0]).detach()
    torch.set_default_dtype(torch.float64)
    try:
        found = make(teacher, student, pairs, auxiliary_weight=0.0)(*pairs[0]).detach()
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found, expected)


def test_another_default_device(teacher: nn.Module, student: nn.Module, pairs: Pairs) -> None:
    """Nothing is left on it: what is drawn and fitted is made where the networks are."""
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
