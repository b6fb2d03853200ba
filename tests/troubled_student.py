"""A student that fails in training as its option `fate` selects; by default it does not fail.

Each training writes the numbers of threads of its process into `folder`, in its first step and once
again in its second epoch of digits, when all libraries are loaded: asking them takes 10 ms.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from threadpoolctl import threadpool_info
from torch import Tensor, nn

from krscale.models.resnet import resnet

STEPS_THAT_WRITE = (1, 18)
SECONDS_OF_A_STEP = 0.02
"""For students that are to be killed: an epoch of digits, 17 steps, then takes a third of a
second, and a trial has written a checkpoint before its fourth epoch."""
STEPS_BEFORE_DEATH = 3 * 17 + 5
BYTES_OF_A_STEP = 100_000_000
"""Bytes that each step of a growing student allocates."""
SLOW_SECONDS = 0.3


class Troubled(nn.Module):
    def __init__(self, fate: str = "calm", folder: str = "", **arguments: Any) -> None:
        super().__init__()
        self.fate, self.folder, self.num_steps, self.num_seen = fate, Path(folder), 0, 0
        self.grown: list[bytes] = []
        if fate == "is never built" and sys.argv[0].endswith("default_worker.py"):
            time.sleep(1e6)
        self.net = resnet(**arguments)
        self.tap_paths = tuple(f"net.{path}" for path in self.net.tap_paths)
        self.stage_ends = self.net.stage_ends

    def forward(self, images: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled() and images.device.type == "cpu":
            self._meet_fate()
        return self.net(images)

    def _meet_fate(self) -> None:
        if self.fate.startswith("second "):  # only on the second worker of a trial
            if not (dist.is_initialized() and dist.get_rank() == 1):
                return
            self.fate = self.fate.removeprefix("second ")
        self._note_threads()
        if self.fate == "out of memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        if self.fate == "grows":
            self.grown.append(b"x" * BYTES_OF_A_STEP)
            time.sleep(SECONDS_OF_A_STEP)
        if self.fate == "stays":
            (self.folder / "stays").touch()
            time.sleep(1e6)
        if self.fate == "slow":
            (self.folder / f"slow-{os.getpid()}").touch()
            time.sleep(SLOW_SECONDS)
        if self.fate == "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        died = self.folder / "died"
        if self.fate == "killed once" and not died.exists():
            time.sleep(SECONDS_OF_A_STEP)
            self.num_steps += 1
            if self.num_steps > STEPS_BEFORE_DEATH:
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)

    def _note_threads(self) -> None:
        self.num_seen += 1
        if self.num_seen in STEPS_THAT_WRITE:
            (self.folder / f"threads-{os.getpid()}.json").write_text(json.dumps(threads()))


def threads() -> dict[str, int]:
    """Return how many threads each library of this process would use."""
    found = {f"pool {pool['filepath']}": pool["num_threads"] for pool in threadpool_info()}
    for line in torch.__config__.parallel_info().splitlines():
        name, separator, number = line.strip().partition("() : ")
        if separator and name.endswith(("num_threads", "max_threads", "interop_threads")):
            found[name] = int(number)
    return found
