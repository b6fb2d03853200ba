"""Batch norm across workers, and batches of one value; test_parallel.py has two real workers."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from normed_network import small_network
from torch import nn
from torch.nn import functional as F

from krscale.batch_norm import (
    SharedBatchNorm,
    check_batch_norm,
    convert_batch_norm,
    explain_single_values,
)
from krscale.config.training import BatchSizes
from krscale.errors import UserError
from krscale.parallel import Workers, share_of


class TestConvertBatchNorm:
    def test_alone_changes_nothing(self):
        model = small_network()
        before = list(model.modules())
        assert convert_batch_norm(model, Workers.alone()) is model
        assert all(a is b for a, b in zip(model.modules(), before, strict=True))

    def test_a_norm_under_two_names_stays_one(self):
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        model.add_module("again", model[1])
        model.add_module("inside", nn.Sequential(model[1]))
        converted = convert_batch_norm(model, Workers(1, 2))
        norms = {converted[1], converted.again, converted.inside[0]}
        assert len(norms) == 1
        assert isinstance(norms.pop(), SharedBatchNorm)

    def test_keeps_parameters_mode_and_names(self):
        model = small_network().eval()
        parameters, names = dict(model.named_parameters()), list(model.state_dict())
        converted = convert_batch_norm(model, Workers(1, 2))
        assert list(converted.state_dict()) == names
        assert all(p is parameters[n] for n, p in converted.named_parameters())
        norms = [m for m in converted.modules() if isinstance(m, SharedBatchNorm)]
        assert len(norms) == 2
        assert not any(norm.training for norm in norms)
        again = convert_batch_norm(converted, Workers(1, 2))
        assert [m for m in again.modules() if isinstance(m, SharedBatchNorm)] == norms

    def test_evaluates_like_the_plain_model_without_a_process_group(self):
        plain = small_network().eval()
        converted = convert_batch_norm(copy.deepcopy(plain), Workers(0, 2))
        images = torch.randn(2, 1, 6, 6)
        assert torch.equal(plain(images), converted(images))

    def test_training_without_a_process_group_fails(self):
        converted = convert_batch_norm(small_network(), Workers(0, 2))
        with pytest.raises(ValueError, match="process group"):
            converted(torch.randn(2, 1, 6, 6))

    def test_the_memory_order_of_images_is_kept(self, monkeypatch):
        monkeypatch.setattr("krscale.batch_norm.all_reduce", torch.clone)
        norm = SharedBatchNorm(nn.BatchNorm2d(3), Workers(0, 2))
        images = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last).requires_grad_()
        output = norm(images)
        output.square().sum().backward()
        for found in (output, images.grad):
            assert found.is_contiguous(memory_format=torch.channels_last)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    def test_a_norm_of_another_type_is_that_of_torch(self, monkeypatch, dtype):
        """Torch's kernels refused its parameters beside values in fp32."""
        monkeypatch.setattr("krscale.batch_norm.all_reduce", torch.clone)
        plain = nn.BatchNorm2d(3).to(dtype)
        with torch.no_grad():
            plain.weight.copy_(torch.tensor([0.5, 1.0, -2.0]))
        shared = SharedBatchNorm(copy.deepcopy(plain), Workers(0, 1))
        generator = torch.Generator().manual_seed(0)
        values, upstream = torch.randn(2, 4, 3, 5, 5, generator=generator).to(dtype)
        found = []
        for norm in (shared, plain):
            images = values.clone().requires_grad_()
            output = norm(images)
            (output * upstream).sum().backward()
            gradients = [images.grad, norm.weight.grad, norm.bias.grad]
            found.append([output, *gradients, norm.running_mean, norm.running_var])
        rounding = 4 * torch.finfo(dtype).eps
        for own, expected in zip(*found, strict=True):
            assert own.dtype == dtype
            scale = float(expected.detach().abs().max())
            torch.testing.assert_close(own, expected, rtol=rounding, atol=rounding * scale)

    def test_wrong_shape_is_refused(self):
        norm = SharedBatchNorm(nn.BatchNorm2d(3), Workers(0, 2))
        with pytest.raises(ValueError, match=r"expected \[B, 3, \.\.\.\], got shape \[2, 4\]"):
            norm(torch.zeros(2, 4))


class Narrow(nn.Module):
    """Maps of 1x1 before a batch norm, for images of 4x4."""

    def __init__(self, *, frozen=False, **options):
        super().__init__()
        self.frozen = frozen
        self.first = nn.Sequential(nn.Conv2d(1, 3, 4), nn.BatchNorm2d(3, **options))
        self.classifier = nn.Linear(3, 2)

    def train(self, mode=True):
        super().train(mode)
        self.first.train(mode and not self.frozen)
        return self

    def forward(self, images):
        return self.classifier(self.first(images).mean(dim=(2, 3)))


class TestSingleValues:
    @given(num_samples=st.integers(1, 500), batch=st.integers(1, 600))
    def test_the_smallest_batch_is_that_of_an_epoch(self, num_samples, batch):
        num_steps = -(-num_samples // batch)
        shares = [share_of(num_samples, step, num_steps) for step in range(num_steps)]
        assert BatchSizes(num_samples, batch).smallest == min(
            stop - start for start, stop in shares
        )

    @pytest.mark.parametrize(("num_samples", "batch"), [(100, 1), (101, 2), (3, 2)])
    @pytest.mark.parametrize("workers", [Workers.alone(), Workers(0, 2)])
    def test_batches_of_one_are_refused_where_torch_would_fail(self, num_samples, batch, workers):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            Narrow().train()(torch.zeros(1, 1, 4, 4))
        model = convert_batch_norm(Narrow(), workers)
        message = rf"student: batch norm 'first\.1' .*global_batch_size = {batch}: {num_samples} tr"
        with pytest.raises(UserError, match=message):
            check_batch_norm(model, (1, 4, 4), BatchSizes(num_samples, batch), "student")
        assert model.training
        assert not model.first[1]._forward_pre_hooks

    def test_parts_of_one_are_refused_and_named(self):
        message = "global_batch_size = 8 and train.gradient_accumulation = 5: 100 training images"
        with pytest.raises(UserError, match=message):
            check_batch_norm(Narrow(), (1, 4, 4), BatchSizes(100, 8, num_parts=5), "student")

    @given(size=st.integers(1, 600), parts=st.integers(1, 20))
    def test_the_smallest_part_is_that_of_a_batch(self, size, parts):
        shares = [share_of(size, part, parts) for part in range(parts)]
        sizes = [stop - start for start, stop in shares if start < stop]
        assert BatchSizes(size, size, parts).smallest == min(sizes)

    @pytest.mark.parametrize(
        ("model", "shape", "batch"),
        [
            (Narrow(), (1, 4, 4), BatchSizes(100, 2)),
            (Narrow(), (1, 4, 4), BatchSizes(101, 3)),
            (Narrow(), (1, 4, 4), BatchSizes(96, 8, num_parts=4)),
            (Narrow(), (1, 5, 4), BatchSizes(101, 1)),  # maps of 2x1
            (Narrow(frozen=True), (1, 4, 4), BatchSizes(101, 1)),
            (Narrow(track_running_stats=False), (1, 5, 4), BatchSizes(101, 64)),
            (nn.Sequential(nn.Flatten(), nn.LayerNorm(16)), (1, 4, 4), BatchSizes(101, 1)),
        ],
    )
    def test_what_works_is_left_as_it_is(self, model, shape, batch):
        before = copy.deepcopy(model.state_dict())
        check_batch_norm(model, shape, batch, "student")
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        if batch.global_size != 64:
            model.train()(torch.zeros(batch.smallest, *shape))

    def test_without_running_statistics_single_images_cannot_be_judged(self):
        model = Narrow(track_running_stats=False).eval()
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            model(torch.zeros(1, 1, 4, 4))
        with pytest.raises(UserError, match=r"teacher: batch norm .* keeps no running statistics"):
            check_batch_norm(model, (1, 4, 4), BatchSizes(1000, 64), "teacher")
        assert not model.training

    def test_networks_on_meta_tensors_are_judged_alike(self):
        with torch.device("meta"):
            model = Narrow()
        with pytest.raises(UserError, match="batch norm"):
            check_batch_norm(model, (1, 4, 4), BatchSizes(101, 2), "student")

    def test_an_error_of_torch_names_the_batch(self):
        message = "train.global_batch_size: .* batch of 2, of which this worker has 1"
        with pytest.raises(UserError, match=message), explain_single_values(1, 2):
            F.batch_norm(torch.zeros(1, 3), None, None, training=True)
        with pytest.raises(ValueError, match="other"), explain_single_values(1, 2):
            raise ValueError("other")
