"""Prepare batches before they are used: in a thread, or by reading several steps at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from krscale.methods.batch import Batch

AHEAD_BYTES = 2**20
"""Bytes of the teacher's outputs that are read and decoded at once: a few steps' on a CPU."""
OfTeacher = Mapping[str, tuple[Tensor, ...]]
"""The teacher's outputs for some samples, `[B, ...]` each, by kind."""


def one_ahead(
    make: Callable[[int], Batch], num_steps: int, pool: ThreadPoolExecutor
) -> Iterator[Batch]:
    """Yield `make(0)`, ..., each made in `pool` while the previous one is in use."""
    if num_steps == 0:
        return
    pending = pool.submit(make, 0)
    for step in range(1, num_steps + 1):
        batch = pending.result()
        if step < num_steps:
            pending = pool.submit(make, step)
        yield batch


class ReadAhead:
    """Reads the teacher's outputs for several steps at once, in the order of the steps.

    On a CPU, the time to gather and decode a batch is the start-up time of its operations, whatever
    the number of rows. Batch by batch, this took 3 % of a small student's step.

    Args:
        read: Returns the teacher's outputs for samples.
        samples: Returns the samples of a step.
        num_steps: Steps of the epoch.
    """

    def __init__(
        self, read: Callable[[Tensor], OfTeacher], samples: Callable[[int], Tensor], num_steps: int
    ) -> None:
        self.read, self.samples, self.num_steps = read, samples, num_steps
        self._known: dict[int, OfTeacher] = {}
        self._num_rows = 0  # set once the first step has been read

    def __call__(self, step: int) -> OfTeacher:
        """Return the teacher's outputs for a step's samples; request each step only once."""
        if step not in self._known:
            parts = self._parts_from(step)
            found = self.read(torch.cat(parts))
            bounds = itertools.pairwise(itertools.accumulate(map(len, parts), initial=0))
            self._known = {
                number: {kind: tuple(t[first:last] for t in whole) for kind, whole in found.items()}
                for number, (first, last) in enumerate(bounds, start=step)
            }
            self._num_rows = AHEAD_BYTES // max(1, sum(map(_row_bytes, found.values())))
        return self._known.pop(step)

    def _parts_from(self, step: int) -> list[Tensor]:
        """Return the samples of a step, and of the following steps whose rows still fit."""
        parts = [self.samples(step)]
        num_rows = len(parts[0])
        for later in range(step + 1, self.num_steps):
            part = self.samples(later)
            num_rows += len(part)
            if num_rows > self._num_rows:
                break
            parts.append(part)
        return parts


def _row_bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.shape[1:].numel() * tensor.element_size() for tensor in tensors)
