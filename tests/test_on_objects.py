"""`krscale.distill`: objects in, a result out."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from foreign_networks import LikeResNet, WithObject
from kr_losses import learn
from kr_losses import make_pairs as pairs
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import krscale
from krscale.errors import UserError

BATCHES = pairs(0)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    return learn(LikeResNet(6), pairs(0))


@pytest.fixture
def teacher(trained: nn.Module) -> nn.Module:
    return copy.deepcopy(trained)


def distil(teacher: nn.Module, student: nn.Module | None = None, **changes: Any) -> Any:
    torch.manual_seed(1)
    arguments = {"data": (pairs(0), pairs(1)), "num_epochs": 2, "learning_rate": 0.05, **changes}
    return krscale.distill(teacher=teacher, student=student or LikeResNet(3), **arguments)


def test_a_student_learns(teacher: nn.Module) -> None:
    state = copy.deepcopy(teacher.state_dict())
    student = LikeResNet(3)
    result = distil(
        teacher, student, num_epochs=40, granularity=3, optimizer="adamw", learning_rate=0.02
    )
    assert result.student is student
    assert not student.training
    images, labels = (torch.cat(parts) for parts in zip(*pairs(1), strict=True))
    accuracy = float((student(images).argmax(dim=1) == labels).float().mean())
    assert result.accuracy == pytest.approx(accuracy, abs=1e-6)
    assert accuracy > 0.85
    taught = float((teacher(images).argmax(dim=1) == labels).float().mean())
    assert result.teacher_accuracy == pytest.approx(taught, abs=1e-6)
    assert [metrics["epoch"] for metrics in result.curve] == list(range(1, 41))
    assert result.curve[-1]["train/kr"] < 0.5 * result.curve[0]["train/kr"]
    assert {"val/accuracy", "val/loss", "train/ce", "train/loss"} <= set(result.curve[0])
    assert result.num_parameters == sum(p.numel() for p in student.parameters())
    assert [tap.path for tap in result.taps][-2:] == ["layer2.0", ""]
    assert f"{accuracy:.2%}" in str(result)
    assert all(torch.equal(state[name], value) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize(
    ("method", "terms"),
    [
        ("plain", {"ce"}),
        ("dkd", {"ce", "dkd"}),
        ("kr+dist", {"ce", "kr", "dist"}),
        ("label_smoothing", {"ce"}),
    ],
)
def test_other_methods(method: str, terms: set[str], teacher: nn.Module) -> None:
    metrics = distil(teacher, method=method).curve[-1]
    found = {name.removeprefix("train/") for name in metrics if name.startswith("train/")}
    assert found - {"loss", "accuracy"} == terms


class Functional(nn.Module):
    """A network without any submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(144, 3))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight


class Rows(nn.Module):
    """A network whose only block returns a tuple of several tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.fc = nn.GRU(12, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.gru(images[:, 0])[0][:, -1])


class LeavesOut(LikeResNet):
    """A network that leaves a block out while it is trained."""

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv1(images)
        features = features if self.training else self.layer1(features)
        return self.fc(self.layer2(features).mean(dim=(2, 3)))


@pytest.mark.parametrize("network", [Functional, Rows, lambda: LeavesOut(3)])
@pytest.mark.parametrize("method", ["kd", "plain", "kr"])
def test_a_student_needs_blocks_only_where_they_are_read(
    network: Any, method: str, teacher: nn.Module
) -> None:
    settings: dict[str, Any] = {"granularity": 1} if method == "kr" else {}
    result = distil(teacher, network(), method=method, **settings)
    assert [tap.path for tap in result.taps][-2:] == ["layer2.0", ""], "measured all the same"
    if network is Functional and method == "kr":
        with pytest.raises(UserError, match="student: no block was found"):
            distil(teacher, network(), granularity=2)


def test_a_teacher_needs_blocks_only_where_they_are_read() -> None:
    teacher = Functional().requires_grad_(False)
    teacher.weight.zero_()
    for images, labels in pairs(0):
        for label in range(3):
            teacher.weight[:, label] += images[labels == label].mean(dim=0).flatten() / 10
    result = distil(teacher, method="kd")
    assert [tap.path for tap in result.taps] == [""]
    assert result.teacher_accuracy > 0.9
    with pytest.raises(UserError, match="teacher: no block was found"):
        distil(teacher, method="kr")


def test_settings_reach_method_and_training(teacher: nn.Module) -> None:
    result = distil(
        teacher, WithObject(3), ema_decay=0.9, parameter_weight=0.1, granularity=1, sparsity=0.9
    )
    assert "train/parameter" in result.curve[-1]
    assert isinstance(result.student, WithObject)


def test_a_callback_ends_it(teacher: nn.Module) -> None:
    seen: list[float] = []

    def stop(metrics: dict[str, float]) -> bool:
        seen.append(metrics["val/accuracy"])
        return len(seen) == 2

    assert len(distil(teacher, num_epochs=9, on_epoch=stop).curve) == 2


def test_the_module_of_the_same_name_is_the_function_too(teacher: nn.Module) -> None:
    module: Any = importlib.import_module("krscale.distill")
    assert krscale.distill is module, "importing a module puts it in the place of the function"
    assert len(distil(teacher, num_epochs=1).curve) == 1
    del krscale.distill
    assert krscale.distill.__module__ == "krscale.on_objects"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "krr"}, "unknown method 'krr'. Did you mean 'kr'?"),
        ({"method": "fitnet"}, "'fitnet' learns from features"),
        ({"epochs": 3}, r"distill, method kr: unknown setting 'epochs'. Did you mean 'num_epochs'"),
        ({"kd_weight": 3.0}, "method kr: unknown setting 'kd_weight'"),
        ({"seed": 3}, "unknown setting 'seed'"),
        ({"num_epochs": 1, "warmup_epochs": 3}, "distill: warmup_epochs: 3 .* than num_epochs"),
        ({"num_epochs": 0}, r"distill: num_epochs: .*greater than or equal to 1 \(got 0\)"),
        ({"sparsity": 2.0}, "distill: sparsity: .*less than 1"),
        ({"granularity": 40}, "granularity 40 is out of range"),
        ({"optimizer": "adamv"}, "^distill: optimizer: unknown optimizer 'adamv'"),
        ({"optimizer": "lbfgs"}, "^distill: optimizer: 'lbfgs' cannot be used here: it evaluates"),
        ({"optimizer": "rprop", "learning_rate": 0.1}, "^distill: weight_decay: Rprop has none"),
        ({"data": pairs(0)}, "two loaders are needed"),
        ({"data": (BATCHES, BATCHES)}, "of validation are trained on"),
        ({"method": None}, "distill: method: a text such as 'kr' is needed"),
        ({"on_epoch": 3}, "distill: on_epoch: a function is needed"),
        ({"max_images": "all"}, "KRLoss: max_images: "),
        ({"teacher_taps": "layer1.0"}, r"teacher: taps are a list of paths: \['layer1.0'\]"),
        ({"temperature": 1e300}, "temperature: .*less than or equal to 1000"),
        ({"student": "resnet"}, "student: a torch.nn.Module is needed, and this is str"),
        ({"student": LikeResNet(3).to("meta")}, "student: its weights have no values"),
        ({"student": LikeResNet(3).requires_grad_(False)}, "none of the .* can be trained"),
    ],
)
def test_what_is_wrong_is_said_before_the_training(
    changes: dict[str, Any], said: str, teacher: nn.Module
) -> None:
    with pytest.raises(UserError, match=said):
        distil(teacher, **{"on_epoch": lambda metrics: pytest.fail("it trained")} | changes)


@pytest.mark.parametrize(
    ("size", "settings"), [(17, {}), (1, {}), (20, {"gradient_accumulation": 20})]
)
def test_a_batch_without_variance_is_the_loaders(
    size: int, settings: dict[str, Any], teacher: nn.Module
) -> None:
    """120 images in batches of 17 leave one."""
    student = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 3, 12), nn.BatchNorm2d(3)), nn.Flatten(), nn.Linear(3, 3)
    )
    images, labels = (torch.cat(parts) for parts in zip(*pairs(0), strict=True))
    batches = list(zip(images.split(size), labels.split(size), strict=True))
    with pytest.raises(UserError, match=r"^distill: data\[0\]: a batch of one.*drop_last=True"):
        distil(teacher, student, data=(batches, pairs(1)), method="kd", **settings)
    assert distil(teacher, student, data=(pairs(0), pairs(1)), method="kd").curve


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_a_training_without_gradients_is_refused(mode: str, teacher: nn.Module) -> None:
    said = rf"distill: the student is to be trained, and torch\.{mode}\(\) is on here"
    with pytest.raises(UserError, match=said), getattr(torch, mode)():
        distil(teacher)


def test_numbers_of_numpy_are_numbers(teacher: nn.Module) -> None:
    numbers = {"num_epochs": np.int64(1), "max_images": np.int32(120)}
    result = distil(teacher, learning_rate=np.float32(0.05), **numbers)
    assert len(result.curve) == 1


def test_a_loss_without_weight_is_said(teacher: nn.Module) -> None:
    with pytest.raises(UserError, match="Are all weights of the loss 0"):
        distil(teacher, ce_weight=0.0, kr_weight=0.0)


def test_a_wrong_batch_of_validation_is_said(teacher: nn.Module) -> None:
    wrong = [*pairs(1), (pairs(1)[0][0], pairs(1)[0][1] + 1)]
    with pytest.raises(UserError, match="label 3 is out of range"):
        distil(teacher, data=(pairs(0), wrong))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_images_that_are_no_numbers_are_said(value: float, teacher: nn.Module) -> None:
    """Their logits are NaN, whose argmax is the first class: right for a third of them."""
    images, labels = pairs(1)[0]
    for damaged in (torch.full_like(images, value), images.index_fill(0, torch.tensor([7]), value)):
        wrong = [*pairs(1), (damaged, labels)]
        said = "the teacher gives NaN or infinity for some of its images, which hold NaN or inf"
        with pytest.raises(UserError, match=f"^val_loader: {said}"):
            distil(teacher, data=(pairs(0), wrong))
        with pytest.raises(UserError, match=f"^train_loader: {said}"):
            distil(teacher, data=([*pairs(0), (damaged, labels)], pairs(1)))
        # The damaged images are beyond those on which the teacher is measured.
        with pytest.raises(UserError, match="val/loss is not finite after epoch 1"):
            distil(teacher, data=(pairs(0), wrong), max_images=100)


class StreamWithLength(IterableDataset[tuple[Tensor, Tensor]]):
    """A stream of images with a length."""

    def __len__(self) -> int:
        return 120

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in pairs(0):
            yield from zip(images, labels, strict=True)


def test_a_stream_that_knows_its_length_is_a_loader(teacher: nn.Module) -> None:
    loader = DataLoader(StreamWithLength(), batch_size=40)
    assert len(distil(teacher, data=(loader, pairs(1))).curve) == 2


class Counted:
    """A loader that gives batches `times` times and then none; its `length` may be wrong."""

    num_workers = None  # as in loaders of other libraries

    def __init__(self, times: int, length: int = 3) -> None:
        self.times, self.length = times, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.times -= 1
        return iter(pairs(0) if self.times >= 0 else [])


@pytest.mark.parametrize("number", [0, 1])
def test_a_loader_that_runs_dry_is_said(number: int, teacher: nn.Module) -> None:
    data: list[Any] = [pairs(0), pairs(1)]
    data[number] = Counted(3 - number)  # read for the probes, for a first batch, for an epoch
    words = rf"data\[{number}\]: it gave no batch when it was read again"
    with pytest.raises(UserError, match=words):
        distil(teacher, data=tuple(data))


@pytest.mark.parametrize(("length", "said"), [(2, 1), (3, 0), (5, 1)])
def test_a_length_that_is_not_true_is_said_once(
    length: int, said: int, teacher: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    distil(teacher, data=(Counted(9, length), pairs(1)))
    found = [record.getMessage() for record in caplog.records if "length" in record.getMessage()]
    assert len(found) == said
    assert not said or f"gave 3 batches, and its length is {length}" in found[0]


class NeedsImages(LikeResNet):
    """A network that does not run on an empty batch."""

    def forward(self, images: Tensor) -> Tensor:
        assert len(images)
        return super().forward(images)


def test_batches_without_images_are_left_out(trained: nn.Module) -> None:
    """A loader may leave out images that it cannot read, and so all of a batch."""
    teacher = NeedsImages(6)
    teacher.load_state_dict(trained.state_dict())
    curves = []
    for with_empty in (False, True):
        data = []
        for number in range(2):
            empty = torch.zeros(0, 1, 12, 12), torch.zeros(0, dtype=torch.long)
            data.append([empty, *pairs(number), empty] if with_empty else pairs(number))
        torch.manual_seed(3)
        rate = {"schedule": "constant", "warmup_epochs": 0}  # others depend on the number of steps
        result = distil(teacher, NeedsImages(3), data=tuple(data), **rate)
        curves.append(result.curve)
    assert curves[0] == curves[1]
