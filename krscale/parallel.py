"""Several workers of one training: shares of a batch, sums, and random numbers.

It uses plain `torch.distributed`. The launcher of the workers (Ray Train, torchrun, a test)
initialises the process group; without one, all functions behave as for a single worker.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Workers:
    """The rank and device of this worker in a training.

    Attributes:
        rank: This worker's number, from 0.
        world_size: Number of workers that share the training.
        device: Device on which this worker computes.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def alone(cls, device: torch.device | str = "cpu") -> Workers:
        """Return the only worker of a training on `device`."""
        return cls(device=torch.device(device))

    @classmethod
    def from_environment(cls) -> Workers:
        """Return this process's rank in the process group; alone on the CPU without one.

        With the nccl backend the device is the current GPU, which the launcher of the worker has
        set with `torch.cuda.set_device`.
        """
        if not _is_distributed():
            return cls.alone()
        on_gpu = dist.get_backend() == dist.Backend.NCCL
        device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else "cpu"
        return cls(dist.get_rank(), dist.get_world_size(), torch.device(device))


def share_of(num_samples: int, share: int, num_shares: int) -> tuple[int, int]:
    """Return the half-open range `(start, stop)` of samples in one of several even shares.

    A worker takes such a share of a batch, and a step such a share of an epoch. Shares are
    contiguous, cover all samples, and differ by at most one; with fewer samples than shares, some
    are empty.

    Raises:
        ValueError: If `share` is not one of `num_shares`, counted from 0.

    Example:
        >>> [share_of(10, share, 3) for share in range(3)]
        [(0, 4), (4, 7), (7, 10)]
    """
    if not 0 <= share < num_shares:
        raise ValueError(f"share {share} is not one of {num_shares}")
    size, larger = divmod(num_samples, num_shares)
    start = share * size + min(share, larger)
    return start, start + size + (share < larger)


def num_parts_of(global_size: int, world_size: int, wanted: int) -> int:
    """Return the number of parts in which all workers compute their shares of a batch in turn.

    Batch norm over all workers needs the same number of forwards on each of them. There are at most
    as many parts as every worker has samples: otherwise the last part could be a single sample of
    one worker, which has no variance. A batch with fewer samples than workers is not divided.

    Args:
        global_size: Number of samples of the batch, over all workers.
        world_size: Number of workers.
        wanted: `train.gradient_accumulation`.

    Example:
        >>> num_parts_of(64, 2, 4), num_parts_of(9, 4, 4), num_parts_of(3, 4, 4)
        (4, 2, 1)
    """
    return max(1, min(wanted, global_size // world_size))


def sum_over_workers(tensor: Tensor) -> Tensor:
    """Return the sum of `tensor` over all workers, on all of them; without gradient.

    Every worker must call it with the same shape. A single worker gets its own tensor back.
    """
    if not _is_distributed():
        return tensor
    return all_reduce(tensor)


def all_reduce(tensor: Tensor) -> Tensor:
    """Return the sum of `tensor` over the process group, which must exist; without gradient."""
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def draw_own_numbers(seed: int, epoch: int, rank: int) -> None:
    """Let every worker but the first draw random numbers of its own from now on.

    All workers build network and method from one seed. Without this, they would go on with equal
    numbers, and images at the same place in each share of a batch would get equal dropout masks.
    The first worker goes on as a single one does, from the state that checkpoints hold. What the
    others draw depends on the arguments alone, so that a training that goes on repeats it.

    Args:
        seed: `train.seed`.
        epoch: Number of the epoch, from 0.
        rank: This worker's number, from 0.

    Example:
        >>> def drawn(rank: int) -> list[int]:
        ...     torch.manual_seed(0)
        ...     draw_own_numbers(seed=0, epoch=0, rank=rank)
        ...     return torch.randint(1000, (5,)).tolist()
        >>> drawn(1) == drawn(1), drawn(1) == drawn(2)
        (True, False)
    """
    if rank > 0:
        mixed = np.random.SeedSequence([seed % 2**64, epoch, rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(mixed[0]))


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
