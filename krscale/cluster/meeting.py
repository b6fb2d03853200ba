"""Let the workers of one training meet on the address that they are given, and on no other.

By default, torch's store, through which workers find each other, listens on all addresses of the
first worker's machine, without a password. But torch accepts a socket that already listens.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from krscale.errors import UserError
from krscale.parallel import Workers


def listening_socket(host_name: str, port: int = 0) -> socket.socket:
    """Return a socket that listens on one address; port 0 takes a free port."""
    family, *_, where = socket.getaddrinfo(host_name, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(where[:2], family=family)


@dataclass(frozen=True)
class Meeting:
    """Where a group of workers meets, and on which devices they compute.

    Attributes:
        host: Address of the first worker's machine.
        port: Port on which the first worker's store listens.
        num_workers: Number of workers in the group.
        on_gpu: Whether each has a GPU of its own.
    """

    host: str
    port: int
    num_workers: int
    on_gpu: bool

    def join(self, rank: int, server: socket.socket | None = None) -> Workers:
        """Add this process to the group; return when all workers have joined.

        Args:
            rank: This worker's number, unique in the group.
            server: Listening socket of the first worker; None for the others.

        Raises:
            UserError: If a GPU was reserved for this worker but torch finds none.
        """
        device = torch.device("cpu")
        if self.on_gpu:
            if not torch.cuda.is_available():
                raise UserError(
                    f"train.device: worker {rank + 1} of {self.num_workers} has reserved a GPU, "
                    f"but torch sees none there; search.gpus_per_trial = 0 reserves none."
                )
            device = torch.device("cuda", 0)
            torch.cuda.set_device(device)
        options: dict[str, Any] = (
            {"master_listen_fd": server.detach()} if server else {}
        )  # torch closes it
        store = TCPStore(
            host_name=self.host,
            port=self.port,
            world_size=self.num_workers,
            is_master=server is not None,
            **options,
        )
        dist.init_process_group(
            "nccl" if self.on_gpu else "gloo", store=store, rank=rank, world_size=self.num_workers
        )
        return Workers(rank, self.num_workers, device)
