"""Batch norms of a class of their own, which no norm over several workers can stand for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from krscale.batch_norm import SharedBatchNorm, convert_batch_norm
from krscale.errors import UserError
from krscale.methods.reviewkd import _BatchNorm
from krscale.own_norms import refuse_own_norms
from krscale.parallel import Workers


class WithActivation(nn.BatchNorm2d):
    """As timm's `BatchNormAct2d`: the norm, then an activation."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.act = nn.ReLU()

    def forward(self, input: Tensor) -> Tensor:
        return self.act(super().forward(input))


class InFp32(nn.BatchNorm2d):
    """Computes what torch's does."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float()).to(input.dtype)


class OfOneSample(nn.BatchNorm1d):
    """Normalises each sample by itself in training, and as torch's in evaluation."""

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, input.shape[1:]) if self.training else super().forward(input)


class OfTwo(nn.BatchNorm2d):
    """Takes another argument as well."""

    def forward(self, input: Tensor, condition: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(input) + condition


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("norm", [WithActivation, OfOneSample, OfTwo])
def test_what_computes_more_is_refused_by_name(norm: type[nn.Module], device: str) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(norm(3))).to(device)
    message = f"student: batch norm '1.0' is of a class of its own, {norm.__name__}, "
    with pytest.raises(UserError, match=message):
        refuse_own_norms(network, "student")
    with pytest.raises(UserError, match=r"train\.num_workers = 1"):
        convert_batch_norm(network, Workers(0, 2))


@pytest.mark.parametrize(
    "norm",
    [
        InFp32(3),
        _BatchNorm(3),
        nn.SyncBatchNorm(3),
        nn.BatchNorm1d(3, affine=False),
        nn.BatchNorm3d(3, track_running_stats=False),
        nn.BatchNorm2d(3, momentum=None).to(torch.bfloat16),
        InFp32(3).to("meta"),
    ],
)
def test_what_computes_the_same_is_shared(norm: nn.Module) -> None:
    before = torch.get_rng_state()
    state = {name: value.clone() for name, value in norm.state_dict().items()}
    refuse_own_norms(norm, "student")
    assert isinstance(convert_batch_norm(norm, Workers(0, 2)), SharedBatchNorm)
    assert torch.equal(torch.get_rng_state(), before)
    if not any(value.is_meta for value in state.values()):
        assert all(torch.equal(norm.state_dict()[name], value) for name, value in state.items())
