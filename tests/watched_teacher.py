"""A teacher that fails inside a Ray worker: trials must never need it."""

import sys
from typing import Any

from torch import Tensor, nn

from krscale.models.resnet import resnet


class Watched(nn.Module):
    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.refuse_in_worker()
        self.net = resnet(**arguments)
        self.tap_paths = tuple(f"net.{path}" for path in self.net.tap_paths)
        self.stage_ends = self.net.stage_ends

    @staticmethod
    def refuse_in_worker() -> None:
        if "default_worker.py" in sys.argv[0]:
            raise RuntimeError("the teacher was called inside a trial")

    def forward(self, images: Tensor) -> Tensor:
        self.refuse_in_worker()
        return self.net(images)
