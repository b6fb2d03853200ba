"""Let the workers of Ray Train meet on the address that they are given, and on no other.

Does what `meeting.py` does, for workers that Ray Train sets up. Neither Ray Train nor torch has a
setting for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from krscale.cluster.meeting import listening_socket


def store_on_one_address(host_name: str, port: int, *, is_master: bool, **options: Any) -> TCPStore:
    """Return torch's store, whose server listens only on the address that all workers connect to.

    Args:
        host_name: Name or address of the first worker's machine.
        port: Port on which the server listens.
        is_master: Whether this process is the server.
        options: Further arguments of `TCPStore`.
    """
    if is_master:
        # torch closes it.
        options["master_listen_fd"] = listening_socket(host_name, port).detach()
    return TCPStore(host_name=host_name, port=port, is_master=is_master, **options)


def listen_on_one_address() -> None:
    """Let torch make its stores with `store_on_one_address` in this process from now on."""
    module = import_module("torch.distributed.rendezvous")  # as an attribute it is a function
    setattr(module, "TCPStore", store_on_one_address)  # noqa: B010 - a type


class OneAddress(TorchConfig):
    """Ray Train's torch configuration, with a store that listens on one address."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """The backend that sets up the workers."""
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Prepare a group of workers; runs on the controller when the group has started."""
        worker_group.execute(listen_on_one_address)
        super().on_start(worker_group, backend_config)
