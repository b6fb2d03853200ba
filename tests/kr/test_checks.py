"""What a KRLoss refuses: replaced or shared parts, and outputs of other images."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from foreign_networks import LikeResNet
from kr_losses import Pairs, grads, make
from torch import Tensor, nn

from krscale import KRLoss
from krscale.errors import UserError
from krscale.models import build_model


class Doubled(nn.Module):
    """A block with twice its channels."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self.block(images)] * 2, dim=1)


class Halved(Doubled):
    """A block that ignores the channels that `Doubled` adds."""

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
    """`kr.student` and `kr.teacher` take images of any size: the network may be the same."""
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


def test_outputs_of_other_images_are_refused(
    teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    """Otherwise the teacher's outputs for one image would be compared with all of the student's."""
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
    with pytest.raises(UserError, match=said):
        make(teacher, student, pairs, **settings)


def test_too_few_images_are_refused(teacher: nn.Module, student: nn.Module, pairs: Pairs) -> None:
    images, labels = pairs[0]
    with pytest.raises(UserError, match="it gave 12 images"):
        make(teacher, student, [(images[:12], labels[:12])])


def test_other_classes_are_refused(teacher: nn.Module, pairs: Pairs) -> None:
    student = build_model("resnet", num_classes=5, in_channels=1, width=2, options={})
    with pytest.raises(UserError, match="teacher has 3 classes and the student 5"):
        make(teacher, student, pairs)


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
    """Lazy layers get their values when they first run."""
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


def test_frozen_weights_may_be_shared(teacher: nn.Module, student: nn.Module, pairs: Pairs) -> None:
    student.fc.bias = teacher.fc.bias.requires_grad_(False)
    assert float(make(teacher, student, pairs)(*pairs[0]).detach()) > 0.0


class Normalises(nn.Module):
    """Subtracts a mean from the images; both networks hold it as one shared tensor."""

    def __init__(self, network: nn.Module, mean: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.network(images - self.mean)
        return outputs


class Follows(Normalises):
    """Moves that mean towards the mean of each training batch."""

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(images.detach().mean(), 0.1)
        return super().forward(images)


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
    kr.load_state_dict(state)  # which restores the right probes
    assert kr(*pairs[0]).isfinite()
