"""Code shared by the networks of the zoo: stages of blocks between a stem and a classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

from torch import Tensor, nn

from krscale.errors import UserError

_MOST = {"num_blocks": 1_000, "num_stages": 10, "depth": 6_004, "expansion": 1_000}
_MOST_CHANNELS = 1_000_000
"""Larger networks would take hours to build or exceed any memory."""


class StagedNetwork(nn.Module):
    """A stem, stages of blocks, a last layer, global mean pooling and a linear classifier.

    Attributes:
        tap_paths: Every block in depth order except the last, whose output the classifier reads.
        stage_ends: For each stage the 1-based number of its last tap, the classifier included:
            3 stages of 2 blocks have D = 6 taps and end at taps 2, 4 and 6.
        stage_paths: The module whose output completes each stage; for the deepest stage, this is
            the output that the classifier pools.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[Sequence[nn.Module]],
        last: nn.Module,
        classifier: nn.Linear,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.Sequential(*(nn.Sequential(*blocks) for blocks in stages))
        self.last = last
        self.classifier = classifier
        paths = [f"stages.{s}.{b}" for s, blocks in enumerate(stages) for b in range(len(blocks))]
        self.tap_paths: tuple[str, ...] = tuple(paths[:-1])
        self.stage_ends: tuple[int, ...] = tuple(accumulate(len(blocks) for blocks in stages))
        self.stage_paths: tuple[str, ...] = (
            *(f"stages.{s}" for s in range(len(stages) - 1)),
            "last",
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, in_channels, H, W]` to logits `[B, K]`."""
        features: Tensor = self.last(self.stages(self.stem(images)))
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits


def build_stages(
    block: Callable[[int, int, int], nn.Module],
    in_channels: int,
    stage_widths: Sequence[int],
    num_blocks: int,
) -> list[list[nn.Module]]:
    """Build stages of `num_blocks` blocks; each stage but the first halves the resolution.

    Args:
        block: Builds a block from (channels in, channels out, stride).
        in_channels: Channels of the stem.
        stage_widths: Channels of each stage.
        num_blocks: Number of blocks in each stage.
    """
    stages: list[list[nn.Module]] = []
    channels = in_channels
    for number, stage_width in enumerate(stage_widths):
        stages.append([])
        for position in range(num_blocks):
            stride = 2 if number > 0 and position == 0 else 1
            stages[-1].append(block(channels, stage_width, stride))
            channels = stage_width
    return stages


def require_counts(model: str, **counts: object) -> None:
    """Refuse any argument that is not a whole number from 1 to its maximum.

    Raises:
        UserError: If there is one; the message names the network, the argument, its value and the
            allowed range.
    """
    for name, value in counts.items():
        most = _MOST.get(name, _MOST_CHANNELS)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise UserError(
                f"{model}: {name} must be a whole number from 1 to {most:,} (got {value!r})."
            )
