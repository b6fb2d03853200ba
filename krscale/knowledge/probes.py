"""Probes: the class distribution at a tap, and the information gain it carries.

A probe is a multinomial logistic regression from a tap's pooled feature to the classes, fitted once
with the teacher frozen. It turns the outputs of blocks of any width into comparable distributions.

Like the student's heads, a probe reads the means over the cells of a grid. The few channels of an
early block separate the classes by the positions at which they are active, which a single mean over
all positions does not keep.

Source: Alain and Bengio, Understanding intermediate layers using linear classifier probes, 2016,
arXiv 1610.01644.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from krscale.errors import KrscaleError, UserError
from krscale.knowledge.logistic import fit_logistic
from krscale.knowledge.taps import TapOutputs, pool

MAX_FEATURES = 1024
"""Maximum number of values that a probe reads; a tap with more is read on a coarser grid. The time
of a fit grows with the cube of this number, and the many channels of a late block need no cells.
Cached probes that were fitted with another limit are not used (`krscale.setup.kept_probes`)."""


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe; the standardisation of the features is folded into its weights.

    Attributes:
        weight: `[K, F]` fp32.
        bias: `[K]` fp32.
    """

    weight: Tensor
    bias: Tensor


def fit_probe(
    features: Tensor, labels: Tensor, num_classes: int, *, weight_decay: float = 1e-3
) -> LinearProbe:
    """Fit a probe to its unique optimum in float64, so that it does not depend on the processor.

    Features are standardised with their own statistics. A constant feature carries no information
    and gets the weight 0. `krscale.knowledge.logistic` documents when the fit stops, and how far
    from the optimum the weights may then be.

    Args:
        features: `[N, F]` pooled features of the training split.
        labels: `[N]` int64.
        num_classes: `K`.
        weight_decay: Factor of half the squared norm of the weights for standardised features;
            more than 0.

    Raises:
        UserError: If there are no samples, a feature is not finite, or the optimum is not reached.

    Example:
        >>> features = torch.tensor([[-1.0, 7.0], [1.0, 7.0]])  # the second is constant
        >>> probe = fit_probe(features, torch.tensor([0, 1]), num_classes=2)
        >>> probe.weight[:, 1].abs(), (features @ probe.weight.T + probe.bias).argmax(dim=1)
        (tensor([0., 0.]), tensor([0, 1]))
    """
    if features.shape[0] == 0:
        raise UserError("a probe cannot be fitted to 0 samples; the training split is empty.")
    if not bool(torch.isfinite(features).all()):
        raise UserError("a tap of the teacher gives NaN or infinity on the training split.")
    inputs, mean, inverse_std = _standardise(features)
    weights = fit_logistic(inputs, labels, num_classes, weight_decay)
    folded = weights[:, :-1] * inverse_std
    return LinearProbe(folded.float(), (weights[:, -1] - folded @ mean).float())


def fitting_grid(shape: Sequence[int], grid: int) -> int:
    """Return the finest grid, at most `grid`, on which a tap has at most `MAX_FEATURES` values.

    Args:
        shape: Shape of the tap's feature for one image: `[C, H, W]`, `[T, C]` or `[C]`.
        grid: The maximum grid.

    Example:
        >>> fitting_grid((64, 8, 8), 4), fitting_grid((128, 8, 8), 4), fitting_grid((64, 2, 2), 4)
        (4, 2, 4)
    """
    if len(shape) == 3:
        channels, (height, width) = shape[0], shape[1:]
        cells = [min(side, height) * min(side, width) for side in range(1, grid + 1)]
    elif len(shape) == 2:
        channels = shape[1]
        cells = [min(side**2, shape[0]) for side in range(1, grid + 1)]
    else:
        return 1
    # If the channels alone exceed the limit, the mean over all positions is still read.
    return max([1, *(side for side, n in enumerate(cells, 1) if n * channels <= MAX_FEATURES)])


def read_tap(feature: Tensor, grid: int) -> Tensor:
    """Return what a probe reads from a tap, `[B, F]` fp32: means over the cells of a grid.

    Args:
        feature: Output of a block; a feature that was already pooled is returned unchanged.
        grid: Number of cells in each direction, possibly reduced by `fitting_grid`.

    Example:
        >>> block = torch.ones(2, 3, 8, 8)
        >>> read_tap(block, 1).shape, read_tap(block, 4).shape
        (torch.Size([2, 3]), torch.Size([2, 48]))
    """
    return pool(feature, fitting_grid(feature.shape[1:], grid))


class Probes(nn.Module):
    """The probes of all taps except the last, whose logits are the network's own.

    Attributes:
        grid: Grid on which they read the taps.

    Args:
        feature_sizes: Number of values read from each tap, in depth order (`D - 1` entries).
        num_classes: `K`.
        grid: Grid on which the taps are read; 1 reads their means over all positions.
    """

    def __init__(self, feature_sizes: Sequence[int], num_classes: int, grid: int = 1) -> None:
        super().__init__()
        self.grid = grid
        self.linears = nn.ModuleList(
            nn.Linear(size, num_classes, device="cpu", dtype=torch.float32)
            for size in feature_sizes
        )
        self.requires_grad_(False)

    def load(self, probes: Sequence[LinearProbe]) -> None:
        """Load fitted probes, in depth order."""
        for linear, probe in zip(self.linears, probes, strict=True):
            linear.load_state_dict({"weight": probe.weight, "bias": probe.bias})

    def forward(self, outputs: TapOutputs) -> Tensor:
        """Return the logits of every tap, `[B, D, K]` fp32; the last tap is the classifier.

        Raises:
            KrscaleError: If the number of tap features is not the number of probes.
        """
        if len(outputs.features) != len(self.linears):
            raise KrscaleError(
                f"{len(self.linears)} probes cannot read {len(outputs.features)} tap features"
            )
        # Logits of probes are differences of large numbers, which need more precision than bf16.
        with torch.autocast(outputs.logits.device.type, enabled=False):
            pairs = zip(self.linears, outputs.features, strict=True)
            logits = [linear(read_tap(feature, self.grid)) for linear, feature in pairs]
            return torch.stack([*logits, outputs.logits.float()], dim=1)


def information_gain(tap_logits: Tensor, labels: Tensor) -> Tensor:
    """Return the information on the labels that each tap carries, `[D]` fp32 in `[0, 1]`.

    `I_d = max(0, 1 - CE_d / H(Y))`, with the entropy `H(Y)` of the label frequencies. It is 0 for a
    tap that is no better than guessing by frequency, and 1 for one that is always right with full
    confidence.

    Args:
        tap_logits: `[N, D, K]` on held-out samples, at temperature 1.
        labels: `[N]` int64.

    Raises:
        UserError: If there are no samples.

    Example:
        >>> right = torch.tensor([[99.0, 0.0], [0.0, 99.0]])  # of samples of the classes 0 and 1
        >>> tap_logits = torch.stack([0 * right, right, -right], dim=1)  # guessing, right, wrong
        >>> information_gain(tap_logits, torch.tensor([0, 1])).round(decimals=4).abs()
        tensor([0., 1., 0.])
    """
    num_samples, num_taps, num_classes = tap_logits.shape
    if num_samples == 0:
        raise UserError("information gain needs held-out samples; the validation split is empty.")
    index = labels.view(-1, 1, 1).expand(-1, num_taps, 1)
    correct = tap_logits.gather(-1, index).squeeze(-1).double()
    cross_entropy = (tap_logits.double().logsumexp(dim=-1) - correct).mean(dim=0)
    shares = torch.bincount(labels, minlength=num_classes).double() / num_samples
    entropy = -torch.special.xlogy(shares, shares).sum()
    if entropy <= 0.0:
        return torch.zeros(num_taps, device=tap_logits.device)
    gain: Tensor = 1.0 - cross_entropy / entropy
    return gain.clamp_min(0.0).float()


def _standardise(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return standardised features with a column of ones, their mean and inverse deviation.

    All are fp64: `[N, F + 1]`, `[F]` and `[F]`; the inverse deviation of a constant feature is 0.
    """
    inputs = features.new_ones(len(features), features.shape[1] + 1, dtype=torch.float64)
    standardised = inputs[:, :-1]  # a view, as the features may be large
    standardised.copy_(features.detach())
    mean = standardised.mean(dim=0)
    standardised -= mean
    std = torch.linalg.vector_norm(standardised, dim=0) / math.sqrt(len(features))
    # Constant features in fp32 may still differ in their last bits.
    constant = std <= 1e-6 * mean.abs() + 1e-12
    inverse_std = torch.where(constant, 0.0, 1.0 / std.clamp_min(1e-12))
    standardised *= inverse_std
    return inputs, mean, inverse_std


def are_bounded(logits: Tensor) -> bool:
    """Return whether all logits `[N, K]` lie between 0 and 1, as after a sigmoid or a softmax.

    Equal logits, such as the zeros of a new classifier, do not count as bounded.

    Example:
        >>> are_bounded(torch.tensor([[0.1, 0.9]])), are_bounded(torch.zeros(2, 2))
        (True, False)
    """
    within = bool(((logits >= 0.0) & (logits <= 1.0)).all())
    return within and bool(logits.min() < logits.max())
