"""An exponential moving average of a student's weights, evaluated and saved in their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from krscale.knowledge.modes import copy_of
from krscale.training.optimisers import HALF_PRECISION


class AveragedStudent:
    """A copy of a student whose weights are a moving average of those in training.

    After update `n` they are `d * average + (1 - d) * weights` with
    `d = min(decay, (1 + n) / (10 + n))`, so that the initial, random weights soon lose their
    influence. Running statistics are averaged in the same way, and weights with several names are
    updated once. Counters are copied, and so are masks with infinity, whose mean would be NaN. The
    average of a weight in bf16 or fp16 is kept in fp32, as a step is less than their digits show.

    Args:
        student: The student in training.
        decay: Weight of the previous average.
    """

    def __init__(self, student: nn.Module, decay: float) -> None:
        self.model = copy_of(student).requires_grad_(False)
        self.decay, self.num_updates = decay, 0
        state = self.model.state_dict()
        self.averaged = {
            name
            for name, value in state.items()
            if (value.is_floating_point() or value.dtype in (torch.complex64, torch.complex128))
            and not bool(value.isinf().any())
        }
        self.exact = {
            name: value.float()
            for name, value in state.items()
            if name in self.averaged and value.dtype in HALF_PRECISION
        }

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Update the average with the weights after a step."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        current = student.state_dict()
        averages = self.model.state_dict(keep_vars=True)  # the tensors themselves
        once = {id(average): (name, average) for name, average in averages.items()}
        for name, average in once.values():  # tied weights have several names
            if name in self.averaged:
                exact = self.exact.get(name, average)
                exact.lerp_(current[name].to(exact.dtype), 1.0 - decay)
                if exact is not average:
                    average.copy_(exact)
            else:
                average.copy_(current[name])

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a restart needs."""
        exact = {"exact": self.exact} if self.exact else {}
        return {"model": self.model.state_dict(), "num_updates": self.num_updates, **exact}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        for name, exact in self.exact.items():  # older checkpoints hold the model alone
            exact.copy_(state.get("exact", state["model"])[name])
        self.num_updates = int(state["num_updates"])
