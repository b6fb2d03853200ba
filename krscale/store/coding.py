"""Encoding the teacher's outputs into rows, by the kind of the store.

The kinds are distributions over the classes, features, and distributions over positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from krscale.store import rows as distributions
from krscale.store import where_rows
from krscale.store.layout import AnyLayout, FeatureLayout, Layout, WhereLayout
from krscale.store.rows import Rows

_LARGEST = 65504.0  # largest fp16
# Change due to fp16 and another device's arithmetic, as a share of a feature's largest number.
_RELATIVE = 0.02


def encode(outputs: Tensor, layout: AnyLayout) -> Rows:
    """Encode the teacher's outputs: `[B, D, K]` logits, or `[B, F]` features, fp32.

    Example:
        >>> encode(torch.tensor([[1.0, 1e6]]), FeatureLayout(((2,),))).values.tolist()  # of fp16
        [[1.0, 65504.0]]
    """
    if isinstance(layout, WhereLayout):
        return where_rows.encode(outputs, layout)
    if isinstance(layout, FeatureLayout):
        return Rows(outputs.clamp(-_LARGEST, _LARGEST).half(), None)
    return distributions.encode(outputs, layout)


def decode_features(rows: Rows, layout: FeatureLayout | WhereLayout) -> tuple[Tensor, ...]:
    """Return the features `[B, *shape]`, one for each shape, fp32.

    Example:
        >>> layout = FeatureLayout(((2,), (1, 2)))
        >>> decode_features(encode(torch.arange(4.0)[None], layout), layout)
        (tensor([[0., 1.]]), tensor([[[2., 3.]]]))
    """
    if isinstance(layout, WhereLayout):
        return where_rows.decode(rows, layout)
    parts = _split(rows.values.float(), layout)
    return tuple(
        part.reshape(len(part), *shape) for part, shape in zip(parts, layout.shapes, strict=True)
    )


def lost(outputs: Tensor, rows: Rows, layout: AnyLayout) -> Tensor:
    """Return the encoding error of each tap or feature, `[B, D]`.

    For distributions it is the total variation, for those over the classes at the store's
    temperature; for features it is the norm of the difference, as a share of the feature's norm.
    """
    if isinstance(layout, WhereLayout):
        return where_rows.variation(outputs, rows, layout)
    if isinstance(layout, Layout):
        return distributions.variation(outputs, rows, layout)
    pairs = zip(
        _split(outputs, layout),
        _split(rows.values.float(), layout),
        strict=True,
    )
    shares = [
        (exact - kept).norm(dim=1) / exact.norm(dim=1).clamp_min(1e-6) for exact, kept in pairs
    ]
    return torch.stack(shares, dim=1)


def mean_lost(outputs: Tensor, layout: AnyLayout) -> Tensor:
    """Return the mean encoding error of each tap or feature, `[D]` fp32.

    Example:
        >>> features = torch.tensor([[1.0, 131008.0]])  # the second is twice what fp16 can hold
        >>> mean_lost(features, FeatureLayout(((1,), (1,))))
        tensor([0.0000, 0.5000])
    """
    return lost(outputs, encode(outputs, layout), layout).mean(dim=0)


def deviations(rows: Rows, outputs: Tensor, layout: AnyLayout) -> tuple[Tensor, Tensor]:
    """Compare stored rows with the teacher's outputs now.

    Returns:
        The differences of all stored numbers, and the largest that is allowed for each, `[B, ...]`
        both.
    """
    if isinstance(layout, WhereLayout):
        return where_rows.deviations(rows, outputs, layout)
    if isinstance(layout, Layout):
        return distributions.deviations(rows, outputs, layout)
    then, now = rows.values.float(), encode(outputs, layout).values.float()
    largest = [
        part.abs().amax(dim=1, keepdim=True).expand_as(part) for part in _split(then, layout)
    ]
    return (now - then).abs(), _RELATIVE * torch.cat(largest, dim=1)


def _split(rows: Tensor, layout: FeatureLayout) -> list[Tensor]:
    """Return the features in a row, `[B, size]` each."""
    return list(torch.split(rows, list(layout.sizes), dim=1))
