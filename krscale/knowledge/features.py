"""Features: outputs of a network's stages beyond the distributions of its taps.

KR and the methods on logits need only the teacher's distributions at the taps. Methods that compare
features need more: a vector, a map of where the network is active, or a whole feature map. Each of
these is a *kind*. A kind is read in the same way from a teacher, whose features are stored, and
from a student.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from krscale.errors import UserError
from krscale.knowledge.taps import TapOutputs, pool, run_tapped
from krscale.knowledge.where import where_distributions

FeatureKind = Literal["pooled", "attention", "map", "maps", "where"]
"""What is read from the stages' outputs:

- `pooled`: mean over positions of the deepest stage, `[B, C]`, the input of a linear classifier;
- `attention`: `attention_map` of every stage, `[B, H, W]` each;
- `map`: the whole output of the middle stage, `[B, C, H, W]`;
- `maps`: the whole output of every stage, `[B, C, H, W]` each;
- `where`: for KR, the distribution over cells of every stage, `[B, rows, columns]` each
  (`krscale.knowledge.where`).
"""

KINDS: tuple[FeatureKind, ...] = get_args(FeatureKind)

Shapes = tuple[tuple[int, ...], ...]
"""Shapes of several features, without the batch dimension."""

MIN_NORM = 1e-6
"""A vector with a smaller norm is divided by this instead, so that gradients stay finite."""


def stage_paths(model: nn.Module, taps: Sequence[str]) -> tuple[str, ...]:
    """Return the module paths whose outputs are the features of a network's stages.

    These are the network's own `stage_paths`. If it has none, or if the user named its taps, every
    tap is a stage.

    Args:
        model: The network.
        taps: Its taps, resolved, without the classifier.
    """
    if tuple(taps) != getattr(model, "tap_paths", None):
        return tuple(taps)
    return tuple(getattr(model, "stage_paths", taps))


@torch.no_grad()
def stage_shapes(model: nn.Module, paths: Sequence[str], image_shape: Sequence[int]) -> Shapes:
    """Return the shape of each stage's output for one image; the network stays on its device.

    Args:
        model: The network; its train or eval mode is restored afterwards.
        paths: Module paths of the blocks at which stages end.
        image_shape: `(C, H, W)` as the network takes it.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.Flatten(), nn.Linear(36, 2))
        >>> stage_shapes(network, ["0"], (1, 8, 8))
        ((4, 3, 3),)
    """
    was_training = model.training
    device = next(model.parameters()).device
    outputs = run_tapped(model.eval(), paths, torch.zeros(1, *image_shape, device=device))
    model.train(was_training)
    return tuple(tuple(feature.shape[1:]) for feature in outputs.features)


def read_features(
    kind: FeatureKind, stages: Sequence[Tensor], image_shape: Sequence[int] = ()
) -> tuple[Tensor, ...]:
    """Return the features of a kind, fp32.

    Args:
        kind: The kind of features.
        stages: The output of every stage, shallow to deep.
        image_shape: `(C, H, W)` as the network takes it; used by `where` for stages with tokens.

    Raises:
        UserError: If there is no stage, or if the kind needs positions and a stage has none.
    """
    if not stages:
        raise UserError("a network without a tap but its classifier has no features; name taps.")
    if kind == "pooled":
        return (pool(stages[-1]),)
    if kind == "attention":
        return tuple(attention_map(stage) for stage in stages)
    if kind == "where":
        return where_distributions(stages, image_shape)
    if kind == "maps":
        return tuple(_with_positions(stage, "a feature map").float() for stage in stages)
    return (_with_positions(stages[(len(stages) - 1) // 2], "a feature map").float(),)


def feature_shapes(kind: FeatureKind, stages: Shapes, image_shape: Sequence[int] = ()) -> Shapes:
    """Return the shapes of `read_features` for stages of the given shapes.

    Example:
        >>> stages = ((4, 8, 8), (8, 4, 4))
        >>> feature_shapes("pooled", stages), feature_shapes("attention", stages)
        (((8,),), ((8, 8), (4, 4)))
    """
    outputs = [torch.empty(1, *shape, device="meta") for shape in stages]
    return tuple(tuple(feature.shape[1:]) for feature in read_features(kind, outputs, image_shape))


def attention_map(stage: Tensor) -> Tensor:
    """Return the positions where a stage is active: mean squares over the channels, with norm 1.

    Source: Zagoruyko, Komodakis, Paying More Attention to Attention, ICLR 2017, arXiv 1612.03928,
    section 3.1, with `F^2_sum`; a mean in place of the sum does not change the normalised map.

    Args:
        stage: `[B, C, H, W]`.

    Returns:
        `[B, H, W]` fp32; zero if the stage is zero everywhere.

    Raises:
        UserError: If the stage has no positions.

    Example:
        >>> stage = torch.tensor([[2.0, 2.0], [-2.0, 2.0], [1.0, -2.0]]).view(1, 3, 1, 2)
        >>> attention_map(stage), attention_map(10 * stage)  # of the energies 9 and 12
        (tensor([[[0.6000, 0.8000]]]), tensor([[[0.6000, 0.8000]]]))
    """
    energy = _with_positions(stage, "an attention map").float().square().mean(dim=1)
    return directions(energy.flatten(1)).view_as(energy)


def directions(vectors: Tensor) -> Tensor:
    """Return vectors `[B, F]` divided by their norm, or by `MIN_NORM` if that is larger.

    Example:
        >>> directions(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    return nn.functional.normalize(vectors, dim=1, eps=MIN_NORM)


class FeatureReader(nn.Module):
    """`read_features` of a tapped network, concatenated into one row per sample, `[B, F]` fp32."""

    def __init__(self, kind: FeatureKind, image_shape: Sequence[int] = ()) -> None:
        super().__init__()
        self.kind, self.image_shape = kind, tuple(image_shape)

    def forward(self, outputs: TapOutputs) -> Tensor:
        """Read the features of a network that was tapped at its stages."""
        features = read_features(self.kind, outputs.features, self.image_shape)
        return torch.cat([feature.flatten(1) for feature in features], dim=1)


def _with_positions(stage: Tensor, what: str) -> Tensor:
    if stage.ndim != 4:
        raise UserError(
            f"a stage gives each image a tensor of shape {list(stage.shape[1:])}; {what} needs "
            "[C, H, W]. Tap another block, or leave this method out."
        )
    return stage
