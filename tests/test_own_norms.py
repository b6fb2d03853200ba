"""Batch norms of custom classes, which a norm over several workers may not be able to replace."""

from __future__ import annotations

import copy
from functools import partial
from threading import Lock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from krscale import batch_norm
from krscale.batch_norm import SharedBatchNorm, convert_batch_norm
from krscale.errors import UserError
from krscale.methods.reviewkd import _BatchNorm
from krscale.own_norms import modules_after, refuse_own_norms
from krscale.parallel import Workers


class WithActivation(nn.BatchNorm2d):
    """Like timm's `BatchNormAct2d`: the norm, then dropout and an activation."""

    def __init__(self, num_features: int, act: nn.Module, drop: nn.Module) -> None:
        super().__init__(num_features)
        self.drop, self.act = drop, act

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


class Doubled(nn.BatchNorm2d):
    """Computes more than the norm and its modules do."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.act = nn.ReLU()

    def forward(self, input: Tensor) -> Tensor:
        return 2.0 * self.act(super().forward(input))


class InFp32(nn.BatchNorm2d):
    """Computes the same as torch's norm."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float()).to(input.dtype)


class OfOneSample(nn.BatchNorm1d):
    """Normalises each sample separately in training, and like torch's norm in evaluation."""

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, input.shape[1:]) if self.training else super().forward(input)


class OfOwnStatistics(nn.BatchNorm2d):
    """Like torch's norm in training, but keeps biased variances for the evaluation."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        mean, variance = input.mean((0, 2, 3)), input.var((0, 2, 3), unbiased=False)
        self.running_mean.lerp_(mean.detach(), 0.1)
        self.running_var.lerp_(variance.detach(), 0.1)
        return F.batch_norm(input, None, None, self.weight, self.bias, training=True)


class OfPositions(nn.BatchNorm1d):
    """Like torch's norm, but takes only `[B, C, L]`, and has attributes that cannot be copied."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.lock, self.last = Lock(), torch.zeros(1, requires_grad=True) * 2.0

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim != 3:
            raise ValueError("expected [B, C, L]")
        with self.lock:
            self.last = super().forward(input)
        return self.last


class OfTwo(nn.BatchNorm2d):
    """Takes another argument as well."""

    def forward(self, input: Tensor, condition: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(input) + condition


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("norm", [Doubled, OfOneSample, OfOwnStatistics, OfTwo])
def test_what_computes_more_is_refused_by_name(norm: type[nn.Module], device: str) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(norm(3))).to(device)
    message = f"student: batch norm '1.0' is of a class of its own, {norm.__name__}, "
    with pytest.raises(UserError, match=message):
        refuse_own_norms(network, "student")
    with pytest.raises(UserError, match=r"train\.num_workers = 1"):
        convert_batch_norm(network, Workers(0, 2))


def test_a_norm_whose_forward_was_replaced_is_refused() -> None:
    """The new forward may be bound to the norm, and would normalise over one worker's samples."""
    norm = nn.BatchNorm2d(3)
    norm.forward = partial(norm.forward)  # type: ignore[method-assign]
    with pytest.raises(UserError, match="student: batch norm '0' has had its forward replaced"):
        refuse_own_norms(nn.Sequential(norm), "student")
    with pytest.raises(UserError, match=r"train\.num_workers = 1"):
        convert_batch_norm(nn.Sequential(norm), Workers(0, 2))


def test_a_compiled_norm_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was compiled of it would normalise over one worker's samples."""
    exchanged: list[torch.Tensor] = []
    monkeypatch.setattr(batch_norm, "all_reduce", lambda own: exchanged.append(own) or own)
    norm = nn.BatchNorm2d(3)
    norm.compile(backend="eager")
    shared = convert_batch_norm(nn.Sequential(norm), Workers(0, 2))
    shared(torch.randn(4, 3, 5, 5))
    assert len(exchanged) == 1


@pytest.mark.parametrize(
    "norm",
    [
        InFp32(3),
        OfPositions(3),
        InFp32(3, affine=False),
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


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("act", "drop"),
    [
        (nn.ReLU(inplace=True), nn.Identity()),
        (nn.Hardswish(), nn.Dropout2d(0.5)),
        (nn.PReLU(3), nn.Identity()),
    ],
)
def test_modules_in_a_norm_follow_the_shared_one(
    act: nn.Module, drop: nn.Module, device: str
) -> None:
    norm = WithActivation(3, act, drop).to(device)
    names = list(norm.state_dict())
    assert modules_after(norm) == ("drop", "act")
    shared = convert_batch_norm(norm, Workers(0, 2))
    assert list(shared.state_dict()) == names
    assert [shared.act, shared.drop] == [norm.act, norm.drop]


def test_what_a_user_hooked_to_a_norm_is_not_run() -> None:
    norm, seen = InFp32(3), []
    norm.register_forward_hook(lambda *_: seen.append(1))
    assert modules_after(norm) == ()
    assert not seen


class WithMore(nn.BatchNorm2d):
    """Has members that torch's norm lacks, under names that the shared norm may use."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("scratch", torch.zeros(1), persistent=False)
        self.after, self.workers = nn.PReLU(), nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        return self.after(super().forward(input))


def test_a_shared_norm_has_all_that_the_norm_had(one_worker: Workers) -> None:
    """Otherwise the weights do not load into the original network, which shows only at the end."""
    norm = WithMore(3)
    shared = convert_batch_norm(nn.Sequential(norm), Workers(0, 2))
    names = [f"0.{name}" for name in norm.state_dict()]
    assert list(shared.state_dict()) == names
    output = SharedBatchNorm(norm.eval(), one_worker)(torch.full((1, 3, 1, 1), -4.0))
    assert torch.allclose(output, torch.tensor(-1.0))


@pytest.fixture
def one_worker(monkeypatch: pytest.MonkeyPatch) -> Workers:
    monkeypatch.setattr(batch_norm, "all_reduce", lambda tensor: tensor)  # the sum over one worker
    return Workers.alone()


def test_a_shared_norm_with_an_activation_gives_what_the_norm_gave(one_worker: Workers) -> None:
    torch.manual_seed(0)
    own = WithActivation(3, nn.PReLU(3), nn.Identity())
    shared = SharedBatchNorm(copy.deepcopy(own), one_worker)
    images = torch.randn(5, 3, 4, 4)
    for training in (True, False):
        own.train(training)
        shared.train(training)
        gradients = []
        for norm in (own, shared):
            given = images.clone().requires_grad_()
            output = norm(given)
            output.square().sum().backward()
            gradients.append((output.detach(), given.grad, norm.act.weight.grad.clone()))
        for expected, found in zip(*gradients, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_shared_norm_takes_an_activation_in_place(one_worker: Workers) -> None:
    norm = WithActivation(2, nn.ReLU(inplace=True), nn.Identity())
    shared = SharedBatchNorm(norm, one_worker)
    given = torch.randn(4, 2, 3, 3, requires_grad=True)
    output = shared(given)
    output.sum().backward()
    assert output.min() == 0.0
    assert given.grad is not None


class Frozen(nn.BatchNorm2d):
    """Always normalises with its running statistics."""

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)


class KeepsNorms(nn.Sequential):
    """Keeps its batch norms in eval mode, which it knows by their class."""

    def train(self, mode: bool = True) -> KeepsNorms:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


@pytest.mark.parametrize(
    "network",
    [nn.Sequential(nn.Conv2d(1, 3, 3), Frozen(3)), KeepsNorms(nn.Conv2d(1, 3, 3), InFp32(3))],
)
def test_norms_that_a_network_keeps_in_eval_mode_stay_there(network: nn.Module) -> None:
    """Trained, they would give another student over several workers than on one."""
    shared = convert_batch_norm(copy.deepcopy(network), Workers(0, 2)).train()
    images = torch.randn(4, 1, 6, 6) + 3.0
    norm = shared.get_submodule("1")
    assert isinstance(norm, SharedBatchNorm)
    assert not norm.training
    torch.testing.assert_close(shared(images), network.train()(images))
    assert torch.equal(norm.running_mean, torch.zeros(3))


def test_what_is_hooked_to_a_norm_stays(one_worker: Workers) -> None:
    norm, seen = nn.BatchNorm2d(3), []
    norm.register_forward_hook(lambda *_: seen.append(1))
    prune.random_unstructured(norm, "weight", 0.4)  # its weight is computed before every forward
    images = torch.randn(4, 3, 5, 5)
    expected = norm(images)
    shared = SharedBatchNorm(norm, one_worker)
    assert list(shared.state_dict()) == list(norm.state_dict())
    torch.testing.assert_close(shared(images), expected, rtol=1e-4, atol=1e-5)
    assert len(seen) == 2


def test_statistics_that_are_not_tracked_stay(one_worker: Workers) -> None:
    norm = nn.BatchNorm2d(3)
    norm.track_running_stats = False  # torch then normalises with the batch, and updates nothing
    images = torch.randn(4, 3, 5, 5) + 3.0
    shared = SharedBatchNorm(copy.deepcopy(norm), one_worker)
    torch.testing.assert_close(shared(images), norm(images), rtol=1e-4, atol=1e-5)
    assert torch.equal(shared.running_mean, norm.running_mean)
    assert torch.equal(shared.running_mean, torch.zeros(3))
