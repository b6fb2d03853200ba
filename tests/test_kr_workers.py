"""KRLoss on two processes learns what one would of the whole batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from foreign_networks import LikeResNet
from running import environment
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
    loss(*batch).backward()
    parameters = [*student.parameters(), *loss.parameters()]
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def work(rank: int, folder: str) -> None:
    store = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    parallel = nn.parallel.DistributedDataParallel
    teacher, student = networks()
    student = parallel(student)
    own = batches()[:2] if rank == 0 else batches()[2:]  # other images for each
    torch.manual_seed(rank)  # other first weights, too
    loss = loss_of(teacher, student, own)
    found: dict[str, Any] = {"alone": list(loss.state_dict().values())}
    images, labels = batches()[0]
    share = slice(0, 10) if rank == 0 else slice(10, 20)
    found["gradients"] = gradients(student, parallel(loss), (images[share], labels[share]))
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.barrier()  # neither leaves while the other still talks to it
    torch.distributed.destroy_process_group()


def test_two_processes_learn_as_one(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(tmp_path)],
            env=environment(GLOO_SOCKET_IFNAME="lo"), stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    first, second = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(2))
    for one, other in zip(first["alone"], second["alone"], strict=True):
        same = torch.equal(one, other) if isinstance(one, Tensor) else one == other
        assert same, "probes, gains and heads are the first worker's"
    teacher, student = networks()
    torch.manual_seed(0)
    expected = gradients(student, loss_of(teacher, student, batches()[:2]), batches()[0])
    for found in (first, second):
        torch.testing.assert_close(found["gradients"], expected, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2])
