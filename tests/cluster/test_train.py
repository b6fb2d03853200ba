"""Errors of Ray Train's workers, as the command that waits for them reports them."""

import errno
import queue
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor, nn

from krscale.cluster import train, worker_reports
from krscale.cluster.train import _user_error, _worker, fit_on_workers
from krscale.cluster.versions import own_versions
from krscale.config import load
from krscale.errors import DiskFullError, UserError


def test_a_mistake_of_the_user_is_found_among_what_the_workers_raised() -> None:
    full = DiskFullError("no room for /runs/a/state")
    lost = RuntimeError("[gloo] Connection closed by peer")
    assert _user_error(WorkerGroupError("2 workers failed", {0: lost, 1: full})) is full


def test_workers_that_are_gone_and_disks_that_are_full_are_one_sentence() -> None:
    gone = RayActorError(error_msg="The actor died. Worker exit type: SYSTEM_ERROR")
    dead = WorkerHealthCheckFailedError("a worker died", gone)
    lost = _user_error(WorkerGroupError("1 worker failed", {0: dead}))
    assert "ended without an exception: it was killed" in str(lost)
    full = OutOfMemoryError(
        "the node running low on memory. Memory on the node (IP: 192.0.2.2) was 15GB used / 16GB"
    )
    memory = _user_error(
        WorkerGroupError("-", {1: WorkerHealthCheckFailedError("a worker died", full)})
    )
    assert "15GB of the 16GB of memory" in str(memory)
    disk = OSError(errno.ENOSPC, "-", "/tmp/state.pt")
    found = _user_error(WorkerGroupError("1 worker failed", {0: disk}))
    assert str(found).startswith("/tmp/state.pt: the disk is full")


def test_workers_that_were_ended_since_they_hung_are_one_sentence() -> None:
    gone = WorkerHealthCheckFailedError("a worker died", RayActorError(error_msg="killed"))
    found = _user_error(WorkerGroupError("-", {0: gone}), "it made no progress for 600 s")
    assert str(found) == (
        "the training failed 4 times; the last time it made no progress for 600 s."
    )


@pytest.mark.parametrize(
    "error",
    [WorkerGroupError("1 worker failed", {0: ZeroDivisionError()}), ControllerError(OSError())],
)
def test_a_defect_is_none(error: Exception) -> None:
    assert _user_error(error) is None  # type: ignore[arg-type]


def test_the_queue_is_on_this_node_and_what_its_reader_met_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another node it could be lost with the node, and the training could never continue."""
    options: dict[str, object] = {}

    class Queue(queue.Queue[object]):
        def __init__(self, actor_options: dict[str, object]) -> None:
            super().__init__()
            options.update(actor_options)

        def shutdown(self, immediate: bool = False) -> None: ...

    class Trainer:
        def __init__(self, config: dict[str, Queue], *_: object) -> None:
            self.queue = config["queue"]

        def fit(self) -> None:
            self.queue.put({"epoch": 1.0})

    def refuse(metrics: dict[str, float]) -> None:
        raise full

    full = DiskFullError(f"{tmp_path}: the disk is full")
    kept: list[Path] = []
    context = SimpleNamespace(get_node_id=lambda: "5e" * 28)
    monkeypatch.setattr(worker_reports.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(worker_reports, "Queue", Queue)
    monkeypatch.setattr(train, "_trainer", Trainer)
    monkeypatch.setattr(train, "require_workers", lambda *_: {})
    monkeypatch.setattr(train, "_keep_weights", lambda result, weights: kept.append(weights))
    weights = tmp_path / "student.safetensors"
    with pytest.raises(DiskFullError) as raised:
        fit_on_workers(cast(Any, None), load(None, []), "train", weights, refuse, print)
    assert raised.value is full
    assert kept == [weights], "nothing of the training is lost"
    place = options["scheduling_strategy"]
    assert isinstance(place, NodeAffinitySchedulingStrategy)
    assert (place.node_id, place.soft, options["num_cpus"]) == ("5e" * 28, False, 0)


class WithUnused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(2, 1), nn.Linear(2, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.used(inputs)


class TwoSteps:
    """A training whose epoch is two steps of torch's own wrapper."""

    finished = False

    def __init__(self, network: nn.Module) -> None:
        self.network = nn.parallel.DistributedDataParallel(network)

    def run_epoch(self) -> dict[str, float]:
        for _ in range(2):
            self.network(torch.ones(3, 2)).sum().backward()
        raise RuntimeError("a defect")


def test_a_network_that_cannot_be_shared_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_is_missing(timeout: timedelta) -> None:
        raise RuntimeError("Rank 1 failed to pass monitoredBarrier")

    monkeypatch.setattr(train.train, "get_checkpoint", lambda: None)
    monkeypatch.setattr(train, "StepReporter", lambda *arguments: SimpleNamespace(step=None))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        config = {"weights": "w", "section": "teacher", "stall_seconds": 0.0, "go_on_from": ""}
        config["versions"] = own_versions()
        config["queue"] = SimpleNamespace(actor=SimpleNamespace(put=SimpleNamespace(remote=list)))
        found = _worker({**config, "build": lambda workers: TwoSteps(WithUnused())})
        with pytest.raises(RuntimeError, match="a defect"):
            _worker({**config, "build": lambda workers: TwoSteps(nn.Linear(2, 1))})
        # Where blocks are left out at random, others have no error and wait for this one.
        monkeypatch.setattr(dist, "monitored_barrier", one_is_missing)
        with pytest.raises(UserError, match=r"^teacher\.num_workers: the network has weights"):
            _worker({**config, "build": lambda workers: TwoSteps(WithUnused())})
    finally:
        dist.destroy_process_group()
    assert found is not None
    kind, text = found
    assert kind == "UserError"
    assert text.startswith("teacher.num_workers: the network has weights that take no part")
