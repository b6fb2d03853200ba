"""The store by which workers find each other listens on the given address only."""

import socket
from datetime import timedelta

import psutil
import pytest
import torch.distributed as dist
from ray.train.torch import TorchConfig

from krscale.cluster import rendezvous
from krscale.cluster.rendezvous import OneAddress, listen_on_one_address

SECONDS = timedelta(seconds=30)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture
def store_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore torch's store class at the end of the test."""
    module = rendezvous.import_module("torch.distributed.rendezvous")
    monkeypatch.setattr(module, "TCPStore", dist.TCPStore)


@pytest.mark.parametrize("ours", [True, False])
def test_where_a_group_of_workers_listens(
    ours: bool, store_of_torch: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without our store torch listens on all addresses; once that changes, ours can be removed."""
    port = free_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    if ours:
        listen_on_one_address()
    dist.init_process_group("gloo", rank=0, world_size=1, timeout=SECONDS)
    try:
        connections = psutil.Process().net_connections()
        found = {c.laddr.ip for c in connections if c.laddr.port == port and c.status == "LISTEN"}
    finally:
        dist.destroy_process_group()
    everywhere = ({"::"}, {"0.0.0.0"})  # the second on a machine without IPv6
    assert (found == {"127.0.0.1"}) if ours else (found in everywhere)


def test_ray_train_sets_up_workers_so(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []

    class Group:
        def execute(self, function: object) -> None:
            done.append(function)

    base = TorchConfig().backend_cls
    monkeypatch.setattr(base, "on_start", lambda *_: done.append("torch is set up"))
    config = OneAddress(backend="gloo")
    config.backend_cls().on_start(Group(), config)
    assert done == [listen_on_one_address, "torch is set up"]
    assert config.to_dict() == TorchConfig(backend="gloo").to_dict()
