"""Taps: the outputs of a network's blocks, read by module path.

A network with taps `("layer1.0", "layer2.0")` has `D = 3` taps in depth order: those two, and its
own classifier, whose output the network returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from krscale.errors import UserError, unknown_name


@dataclass(frozen=True)
class TapOutputs:
    """What a tapped network says of a batch.

    Attributes:
        logits: `[B, K]`, the network's own output.
        features: One tensor per tap path in depth order, as the block gave it: `[B, C, H, W]`,
            `[B, T, C]` or `[B, C]`. The classifier is not among them.
    """

    logits: Tensor
    features: tuple[Tensor, ...]
