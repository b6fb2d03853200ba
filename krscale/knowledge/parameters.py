"""The data-free loss: the distribution of the weights themselves.

The weights of each conv and linear layer are standardised and counted in soft bins. The layers of a
group are mixed in proportion to their numbers of weights. The loss pulls the student's histogram of
a group towards the teacher's. It needs neither images nor a forward pass of the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from krscale.errors import KrscaleError, UserError
from krscale.knowledge.aggregation import Groups
from krscale.knowledge.taps import unwrapped

NUM_BINS = 32
"""Number of bins, whose centres are spaced evenly from `-RANGE` to `RANGE`."""

RANGE = 4.0
"""Range in standard deviations; weights beyond it are counted in the outermost bins."""

SMOOTHING = 0.01
"""Share of every histogram that is spread evenly before the comparison, as bins may be empty."""

Layers = tuple[nn.Module, ...]


def layers_by_tap(model: nn.Module, paths: Sequence[str]) -> tuple[Layers, ...]:
    """Return the conv and linear layers of each of the `D = len(paths) + 1` taps.

    A tap has the layers up to the end of its block that no earlier tap has, in the order in which
    the network registers them. The last tap has the rest, the classifier included. A tap may have
    no layers.

    Args:
        model: The network, wrapped or not.
        paths: Module paths of its taps in depth order.

    Example:
        >>> first, second = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 4, 3)
        >>> network = nn.Sequential(first, nn.ReLU(), second, nn.Flatten(), nn.Linear(4, 3))
        >>> [[type(layer).__name__ for layer in layers] for layers in layers_by_tap(network, ["1"])]
        [['Conv2d'], ['Conv2d', 'Linear']]
    """
    modules = list(unwrapped(model).named_modules())
    ends: list[int] = []
    for path in paths:
        within = [i for i, (name, _) in enumerate(modules) if f"{name}.".startswith(f"{path}.")]
        ends.append(max([*within, *ends[-1:]]))
    ends.append(len(modules))
    starts = [-1, *ends[:-1]]
    return tuple(
        tuple(m for _, m in modules[start + 1 : end + 1] if isinstance(m, (_ConvNd, nn.Linear)))
        for start, end in zip(starts, ends, strict=True)
    )


def weight_histogram(layers: Sequence[nn.Module], num_bins: int = NUM_BINS) -> Tensor:
    """Return the distribution of the standardised weights of `layers`, `[num_bins]` fp32.

    Each weight is divided between its two nearest bins in proportion to their nearness, so the
    histogram is differentiable. It sums to 1, or to 0 if there are no layers.

    Args:
        layers: Modules with a `weight`.
        num_bins: Number of bins, with centres evenly from -4 to 4 standard deviations.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> layer.weight.data = torch.tensor([[10.0, 30.0]])  # a deviation to each side of the mean
        >>> weight_histogram([layer], num_bins=9).tolist()
        [0.0, 0.0, 0.0, 0.5, 0.0, 0.5, 0.0, 0.0, 0.0]
    """
    return weight_histograms([layers], num_bins)[0]


def weight_histograms(
    layer_groups: Sequence[Sequence[nn.Module]], num_bins: int = NUM_BINS
) -> Tensor:
    """Return `weight_histogram` of every group of layers at once, `[G, num_bins]` fp32.

    A group without layers has zeros.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> layer.weight.data = torch.tensor([[10.0, 30.0]])
        >>> weight_histograms([[layer], []], num_bins=3).tolist()  # centres at -4, 0 and 4
        [[0.125, 0.75, 0.125], [0.0, 0.0, 0.0]]
    """
    # Read each weight once: spectral norm performs a power iteration for every read.
    computed = {layer: _weight(layer) for layer in dict.fromkeys(chain(*layer_groups))}
    by_group = [[computed[layer] for layer in layers] for layers in layer_groups]
    weights = [weight for group in by_group for weight in group]
    if not weights:
        return torch.zeros(len(layer_groups), num_bins)
    sizes = [sum(weight.numel() for weight in group) for group in by_group]
    device = weights[0].device
    values = torch.cat([_standardised(weight) for weight in weights])
    position = (values.clamp(-RANGE, RANGE) + RANGE) * ((num_bins - 1) / (2.0 * RANGE))
    # A NaN weight must make the histogram NaN; as an index it would be invalid.
    left = position.detach().nan_to_num(0.0).floor().clamp_max(num_bins - 2)
    share = position - left
    first_bins = torch.arange(len(sizes), device=device) * num_bins
    counts = torch.tensor(sizes, device=device)
    index = left.long() + first_bins.repeat_interleave(counts, output_size=sum(sizes))
    totals = torch.zeros(len(sizes) * num_bins, device=device)
    totals = totals.index_add(0, index, 1.0 - share).index_add(0, index + 1, share)
    return totals.view(len(sizes), num_bins) / counts.clamp_min(1).unsqueeze(1)


def mix_histograms(histograms: Tensor, sizes: Tensor, groups: Groups) -> Tensor:
    """Return the histogram of every group, `[G, bins]`: taps mixed by their number of weights.

    Args:
        histograms: `[D, bins]`, by tap.
        sizes: `[D]`, number of weights by tap.
        groups: The groups of the `D` taps; a group without weights gets zeros.

    Example:
        >>> mix_histograms(torch.eye(2), torch.tensor([30.0, 10.0]), ((0, 2),))
        tensor([[0.7500, 0.2500]])
    """
    masses = histograms * sizes.unsqueeze(1)
    mixed = [
        masses[start:stop].sum(dim=0) / sizes[start:stop].sum().clamp_min(1.0)
        for start, stop in groups
    ]
    return torch.stack(mixed)


def histogram_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the cross-entropy `-sum q log p` of two histograms, `[..., bins] -> [...]` fp32.

    Both are smoothed equally, so the gradient to the student is zero where they agree.

    Args:
        student: `[..., bins]`, summing to 1.
        teacher: `[..., bins]`, summing to 1; gets no gradient.

    Example:
        >>> teacher = torch.tensor([0.25, 0.75, 0.0])
        >>> students = torch.tensor([[0.0, 0.0, 1.0], [0.75, 0.25, 0.0], [0.25, 0.75, 0.0]])
        >>> losses = histogram_cross_entropy(students, teacher)
        >>> losses.argsort(), losses.isfinite().all()  # least where they agree
        (tensor([2, 1, 0]), tensor(True))
    """
    return -(_smooth(teacher.detach()) * _smooth(student).log()).sum(dim=-1)


class ParameterSource(nn.Module):
    """The loss that pulls the student's weight histograms towards the teacher's, by group.

    Args:
        groups: Groups of the teacher's taps.
        teacher_histograms: `[D, bins]`, by tap.
        teacher_layer_sizes: `[D]`, number of weights by tap.
        student_layers: The student's layers by tap. They are not registered as submodules, and
            remain the student's.
        student_ends: For each group the student's tap, counted from 1, where the group ends.

    Raises:
        UserError: If no group has weights in both networks.
    """

    targets: Tensor

    def __init__(
        self,
        groups: Groups,
        teacher_histograms: Tensor,
        teacher_layer_sizes: Tensor,
        student_layers: Sequence[Layers],
        student_ends: Sequence[int],
    ) -> None:
        super().__init__()
        targets = mix_histograms(teacher_histograms, teacher_layer_sizes, groups)
        layers = [_between(student_layers, *both) for both in pairwise((0, *student_ends))]
        kept = [g for g, group in enumerate(layers) if group and float(targets[g].sum()) > 0.0]
        if not kept:
            raise UserError(
                "parameter_weight: no group of taps has conv or linear layers in both teacher and "
                "student, so there are no weights to compare; set it to 0."
            )
        self.register_buffer("targets", targets[kept], persistent=False)
        # Inside a tuple, the modules are not registered as submodules.
        self.layers = tuple(layers[g] for g in kept)

    def forward(self) -> Tensor:
        """Return the mean over groups of `histogram_cross_entropy`, a scalar in fp32."""
        histograms = weight_histograms(self.layers, self.targets.shape[1])
        return histogram_cross_entropy(histograms, self.targets).mean()


def _between(student_layers: Sequence[Layers], before: int, stop: int) -> Layers:
    """Return the student's layers between the end of the previous group and that of this one."""
    # If there are more groups than student taps, several groups share a tap.
    start = min(before, stop - 1)
    return tuple(layer for layers in student_layers[start:stop] for layer in layers)


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    if not isinstance(weight, Tensor):
        raise KrscaleError(f"{type(layer).__name__} has no weight tensor")
    return torch.view_as_real(weight) if weight.is_complex() else weight


def _standardised(weight: Tensor) -> Tensor:
    """Return the weights of one layer, flat, with mean 0 and variance 1; a constant becomes 0."""
    values = weight.float().flatten()
    centred = values - values.mean()
    variance = centred.square().mean()
    return centred / torch.where(variance > 1e-12, variance, 1.0).sqrt()


def _smooth(histogram: Tensor) -> Tensor:
    return (1.0 - SMOOTHING) * histogram.float() + SMOOTHING / histogram.shape[-1]
