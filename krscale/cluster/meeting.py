"""Where the workers of one training meet: on the address that they are told, and on no other.

torch lets the store by which workers find each other listen on all addresses of the first worker's
machine, and asks nobody for a password. It takes a socket that listens already.
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
    """Return a socket that listens on one address, on a free port unless one is named."""
    family, *_, where = socket.getaddrinfo(host_name, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(where[:2], family=family)


@dataclass(frozen=True)
class Meeting:
    """Where a group of workers meets, and how they compute.

    Attributes:
        host: Address of the first worker's machine.
        port: Where its store listens.
        num_workers: Of the group.
        on_gpu: Whether each has a GPU of its own.
    """

    host: str
    port: int
    num_workers: int
    on_gpu: bool

    def join(self, rank: int, server: socket.socket | None = None) -> Workers:
        """Make this process one of the group; returns when all have joined.

        Args:
            rank: This worker's number; each worker has another.
            server: What the first worker listens with; the others have none.

        Raises:
            UserError: If a GPU was reserved for this worker, and torch sees none.
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
