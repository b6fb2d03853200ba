"""Two numbers for every parameter tell whether networks have the same weights."""

from __future__ import annotations

import copy

import torch
from torch import nn

from krscale.knowledge.weight_summary import alike, are_others, summary_of_weights


def test_complex_weights_are_summarised_with_both_parts() -> None:
    network, generator = nn.Module(), torch.Generator().manual_seed(0)
    values = torch.randn(3, 4, dtype=torch.complex64, generator=generator)
    network.weight = nn.Parameter(values)
    other = copy.deepcopy(network)
    other.weight.data = values.conj().resolve_conj()  # the real parts are the same
    assert alike(summary_of_weights(network), summary_of_weights(copy.deepcopy(network)))
    assert not alike(summary_of_weights(network), summary_of_weights(other))
    assert are_others(summary_of_weights(network), summary_of_weights(other))
