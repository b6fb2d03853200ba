"""A KRLoss warns once about each thing that a training loop leaves out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kr_losses import Pairs, make
from torch import Tensor, nn

from krscale import KRLoss
from krscale.kr import loop_watch


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
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The student would be taught through heads that keep their random initial weights."""
    assert loop_watch._LOSSES_UNTIL_HEADS_MOVE <= 100
    monkeypatch.setattr(loop_watch, "_LOSSES_UNTIL_HEADS_MOVE", 20)  # 100 take a second
    kr = make(teacher, student, pairs, granularity=granularity)
    kr.begin_epoch(0.0)
    parameters = [*student.parameters(), *(kr.parameters() if learning else ())]
    optimiser = torch.optim.SGD(parameters, lr=0.01)
    images, labels = pairs[0][0][:4], pairs[0][1][:4]
    for step in range(24):
        kr(images, labels).backward()
        if step % 16 == 15:
            optimiser.step()
            optimiser.zero_grad()
    assert len(caplog.records) == (not learning and granularity > 1)
    assert not caplog.text or "heads have not changed in 20 steps" in caplog.text


def test_heads_whose_weights_are_kept_elsewhere(
    teacher: nn.Module, student: nn.Module, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FSDP keeps them in one tensor for many layers, which then have no parameters."""
    monkeypatch.setattr(loop_watch, "_LOSSES_UNTIL_HEADS_MOVE", 20)
    kr = make(teacher, student, pairs)
    for head in kr.method.heads:
        for name, weight in list(head.named_parameters()):
            delattr(head, name)
            setattr(head, name, weight.detach().requires_grad_())
    assert list(kr.parameters()) == []
    for _ in range(21):
        assert kr(*pairs[0]).isfinite()


class Around(nn.Module):
    """The student and its loss in one module, as trainers wrap them."""

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
