"""Which networks and loaders a KRLoss is made of, and which it refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from foreign_networks import LikeResNet, LikeViT, WithDict, WithObject
from kr_losses import Pairs, grads, learn, make
from programs import exported, scripted, traced
from torch import Tensor, nn

from krscale import KRLoss
from krscale.errors import UserError
from krscale.models import build_model


def test_taps_that_can_be_read_once_are_those_that_were_given(
    teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    """The check of the paths must not exhaust an iterator, or other taps would be found."""
    chosen = [tap.path for tap in make(teacher, student, pairs).taps][1:-1]
    found = make(teacher, student, pairs, teacher_taps=iter(chosen), student_taps=map(str, chosen))
    assert [tap.path for tap in found.taps] == [*chosen, ""]
    assert list(found.student_paths) == chosen


@pytest.mark.parametrize("network", [WithDict, WithObject, LikeViT])
def test_networks_of_others(network: type[nn.Module], teacher: nn.Module, pairs: Pairs) -> None:
    torch.manual_seed(1)
    student = network()
    kr = make(teacher, student, pairs)
    kr(*pairs[0]).backward()
    assert grads(student)


def test_a_layer_that_a_student_uses_twice_keeps_its_weights(
    teacher: nn.Module, pairs: Pairs
) -> None:
    torch.manual_seed(1)
    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
    student = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()), block, nn.Sequential(block),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    before = {name: (value, value.detach().clone()) for name, value in student.named_parameters()}
    kr = make(teacher, student, pairs)
    for name, value in student.named_parameters():
        assert value is before[name][0], "the optimiser of before trains it"
        assert torch.equal(value, before[name][1])
    kr(*pairs[0]).backward()
    assert all(value.grad is not None for value in student.parameters())


def test_networks_of_the_zoo(pairs: Pairs) -> None:
    torch.manual_seed(0)
    options: Any = {"num_classes": 3, "in_channels": 1, "options": {}}
    large = learn(build_model("resnet", width=4, **options), pairs)
    small = build_model("mobilenet", width=2, **options)
    further = {"parameter_weight": 0.1, "where_weight": 0.5}
    kr = make(large, small, pairs, granularity="stage", mixing="geometric", **further)
    kr(*pairs[0]).backward()
    assert set(kr.shown()) == {"ce", "kr", "where", "parameter", "kr/active_classes"}


def in_turn(num_classes: int, num_each: int = 24) -> Pairs:
    """Return a loader that takes the classes in turn, as balanced samplers do."""
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
    order = torch.randperm(24 * num_classes)
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
        (lambda p: [(p[0][0][:0], p[0][1][:0])] * 2, "train_loader: it gave no image"),
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
    """A network, and a module that changes its logits."""

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


def test_images_of_nan_are_not_taken_for_changed_ones(
    teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    broken = [(images.clone(), labels) for images, labels in pairs]
    broken[0][0][0, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match="NaN or infinity"):
        make(teacher, student, broken)


def test_two_images_that_differ_are_looked_for_in_further_batches(
    teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    images, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    images = torch.cat([images[:1].expand(3, -1, -1, -1), images[3:]])
    expected = make(teacher, student, [(images, labels)], granularity=2)
    for size in (1, 2, 40):
        once = iter(list(zip(images.split(size), labels.split(size), strict=True)))
        found = make(teacher, student, once, granularity=2)
        # The batch size changes the order of sums, so the last bit depends on the processor.
        gains = [tap.information_gain for tap in expected.taps]
        same = [
            replace(tap, information_gain=gain) for tap, gain in zip(found.taps, gains, strict=True)
        ]
        assert same == list(expected.taps), "of all images, those that were looked at too"
        assert [tap.information_gain for tap in found.taps] == pytest.approx(gains, abs=1e-6)
    alike = images[:1].expand(30, -1, -1, -1)
    with pytest.raises(UserError, match="teacher: taps are found with two images that differ"):
        make(teacher, student, [(alike, labels[:30])] * 40)


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
        nn.init.zeros_(student.fc.weight)  # as timm initialises it
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
    """As in torchvision's documentation."""
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
    order = labels.argsort(stable=True)  # as from an unshuffled loader of a folder
    by_class = [(images[order[i : i + 20]], labels[order[i : i + 20]]) for i in (0, 20, 40, 60)]
    with pytest.raises(UserError, match="val_loader: the first 30 images hold none of class 1, 2"):
        make(teacher, student, pairs, val_loader=by_class, max_images=30)
    with pytest.raises(UserError, match="val_loader: all images are of class 0"):
        make(teacher, student, pairs, val_loader=by_class[:2])
    assert make(teacher, student, pairs, val_loader=by_class[1:]).information_gain.max() > 0.1
    with pytest.raises(UserError, match=r"val_loader: batches .* are needed, .*, not int"):
        make(teacher, student, pairs, val_loader=3)
