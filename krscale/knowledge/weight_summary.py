"""Two numbers for every parameter of a network, to distinguish it from other networks."""

from __future__ import annotations

import torch
from torch import nn

_ROUNDING = 0.01
"""Relative to the norm of a parameter: rounding to bf16 changes a number by less than this, other
weights change it by more."""


@torch.no_grad()
def summary_of_weights(network: nn.Module) -> list[list[float]]:
    """Return two numbers for every parameter, which `alike` compares.

    They are its norm, and its product with a fixed wave, which detects changes that a norm does
    not: classes in another order. Unlike a hash, they tolerate another precision or device.
    """
    found = []
    for parameter in network.parameters():
        if parameter.is_meta:  # its memory was freed; running it will fail anyway
            found.append([0.0, 0.0])
            continue
        real = torch.view_as_real(parameter) if parameter.is_complex() else parameter
        values = real.detach().to("cpu", torch.float64).flatten()
        wave = torch.arange(1, len(values) + 1, device="cpu", dtype=torch.float64).cos()
        found.append([float(values.norm()), float(values @ wave)])
    return found


def alike(one: list[list[float]], other: list[list[float]]) -> bool:
    """Return whether two summaries are of the same weights, apart from rounding to bf16."""
    if len(one) != len(other):
        return False
    pairs = zip(one, other, strict=True)
    return all(
        abs(a - b) <= _ROUNDING * max(first[0], second[0])
        for first, second in pairs
        for a, b in zip(first, second, strict=True)
    )


def are_others(one: list[list[float]], other: list[list[float]]) -> bool:
    """Return whether two summaries of equal length are of two trainings, not of one.

    Rounding, averaging and folding change weights less than another training, or change only few.
    """
    pairs = [(a, b) for a, b in zip(one, other, strict=False) if min(a[0], b[0]) > 0.0]
    changed = sum(abs(a[1] - b[1]) > 0.2 * max(a[0], b[0]) for a, b in pairs)
    return len(one) == len(other) and changed > len(pairs) / 2
