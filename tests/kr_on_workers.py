"""Gradients of KRLoss on each of two processes, and on one that has the whole batch."""

from __future__ import annotations

from typing import Any

import torch
from foreign_networks import LikeResNet
from torch import Tensor, nn

from krscale import KRLoss

Batch = tuple[Tensor, Tensor]


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return LikeResNet(6), LikeResNet(2)


def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(80) % 3
    images = torch.randn(80, 1, 12, 12, generator=generator) + labels.view(-1, 1, 1, 1)
    return list(zip(images.split(20), labels.split(20), strict=True))


def loss_of(teacher: nn.Module, student: nn.Module, loader: list[Batch]) -> KRLoss:
    return KRLoss.from_networks(
        teacher, student, loader, granularity=3, max_images=40, allow_poor_teacher=True
    )


def gradients(student: nn.Module, loss: nn.Module, batch: Batch) -> list[Tensor]:
    parameters = [*student.parameters(), *loss.parameters()]
    for parameter in parameters:
        parameter.grad = None
    loss(*batch).backward()
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def gradients_of_two(rank: int) -> dict[str, Any]:
    """On one of two workers: the state of the loss, and gradients of half of a batch."""
    parallel = nn.parallel.DistributedDataParallel
    teacher, student = networks()
    student = parallel(student)
    own = batches()[:2] if rank == 0 else batches()[2:]  # each worker has different images
    torch.manual_seed(rank)  # and different initial weights
    loss = loss_of(teacher, student, own)
    state = [value for value in loss.state_dict().values() if isinstance(value, Tensor)]
    images, labels = batches()[0]
    share = slice(0, 10) if rank == 0 else slice(10, 20)
    wrapped = parallel(loss)
    found = gradients(student, wrapped, (images[share], labels[share]))
    loss.begin_epoch(1.0)  # only the classifier is trained now, and no head contributes
    for _ in range(2):
        late = gradients(student, wrapped, (images[share], labels[share]))
    return {"state": state, "gradients": found, "late": late}


def gradients_of_one(progress: float = 0.0) -> list[Tensor]:
    """On a single worker: gradients of the whole batch."""
    teacher, student = networks()
    torch.manual_seed(0)
    loss = loss_of(teacher, student, batches()[:2])
    loss.begin_epoch(progress)
    return gradients(student, loss, batches()[0])
