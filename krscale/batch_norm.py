"""Batch norm over the batches of all workers, and checks for batches that cannot be normalised."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from krscale.config.training import BatchSizes
from krscale.errors import UserError
from krscale.methods.numerics import at_least_fp32
from krscale.own_norms import modules_after, refuse_own_norms
from krscale.parallel import Workers, all_reduce

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class SingleValueError(UserError):
    """A norm gets a single value per channel in training; one value has no variance."""


def convert_batch_norm(model: AnyModule, workers: Workers) -> AnyModule:
    """Replace every batch norm in `model` by one with the statistics of all workers.

    torch's own `SyncBatchNorm` (2.13) also accepts workers without samples, but in training no
    tensors on the CPU, and on a GPU every forward synchronises to find the workers without any.
    Which of the two is faster on GPUs has not been measured. Parameters, buffers and the names in
    the state dict stay the same, so weights can be loaded into the unconverted model.

    Returns:
        `model`, changed in place; a new module if `model` itself is a batch norm.

    Raises:
        UserError: If a batch norm cannot be computed over all workers (`refuse_own_norms`).
    """
    if workers.world_size == 1:
        return model
    refuse_own_norms(model, "the network", known=SharedBatchNorm)
    return _converted(model, workers, {})


def _converted(model: AnyModule, workers: Workers, known: dict[nn.Module, nn.Module]) -> AnyModule:
    """Convert norms; `known` maps each to its replacement, as one may have several names."""
    if isinstance(model, _BatchNorm) and not isinstance(model, SharedBatchNorm):
        if model not in known:
            kind: Any = type(model)
            known[model] = _shared_class(kind)(model, workers)
        return known[model]  # type: ignore[return-value]
    for name, child in list(model._modules.items()):
        if child is not None:
            setattr(model, name, _converted(child, workers, known))
    return model


@cache
def _shared_class(kind: type[_BatchNorm]) -> type[SharedBatchNorm]:
    """Return a class of shared norms that are of the replaced norm's class as well.

    Networks ask for that class, e.g. to keep such norms in eval mode, or the class has a `train`
    of its own that does so.
    """
    if issubclass(kind, nn.SyncBatchNorm):  # torch refuses those on the CPU
        return SharedBatchNorm
    return cast(type[SharedBatchNorm], type(f"Shared{kind.__name__}", (SharedBatchNorm, kind), {}))


def check_batch_norm(
    model: nn.Module, image_shape: tuple[int, ...], batches: BatchSizes, where: str
) -> None:
    """Refuse a network that would normalise a single value per channel, whose variance is 0.

    This happens with batches of one image and maps of 1x1. The shares of workers do not matter, as
    batch norm is over all of them. Without running statistics it also happens in eval mode.

    Args:
        model: The network. If needed, it is run on an image of zeros in eval mode; it is not
            changed.
        image_shape: `(C, H, W)`.
        batches: Batch sizes of the training.
        where: The role of the network, for the error message.

    Raises:
        SingleValueError: With the batch norm and the batch size.
        UserError: If a batch norm cannot evaluate a single image.
    """
    was_training = model.training
    model.train()  # a network may keep norms in eval mode, which are not trained
    norms = {
        module: f"{where}: batch norm {name!r}"
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and (module.running_mean is None or (module.training and batches.smallest == 1))
    }

    def check(norm: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].numel() <= inputs[0].shape[1]:
            raise _single_value(norm, norms[norm], batches)

    handles = [norm.register_forward_pre_hook(check) for norm in norms]
    try:
        if not norms:
            return
        like = next(iter(model.parameters()), torch.empty(0))
        with torch.no_grad():
            model.eval()(torch.zeros(1, *image_shape, dtype=like.dtype, device=like.device))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()


def _single_value(norm: _BatchNorm, named: str, batches: BatchSizes) -> UserError:
    """Return the error for a batch norm that gets one value per channel."""
    if norm.running_mean is None:
        return UserError(
            f"{named} keeps no running statistics, so it cannot judge a single image: its maps are "
            "1x1 there, and one value has no variance. Leave out track_running_stats=False."
        )
    accumulated = f" and train.gradient_accumulation = {batches.num_parts}"
    parts = accumulated if batches.num_parts > 1 else ""
    return SingleValueError(
        f"{named} cannot be trained with train.global_batch_size = {batches.global_size}{parts}: "
        f"{batches.num_samples} training images then give {'parts' if parts else 'batches'} of a "
        "single one, whose maps are 1x1 there, and one value has no variance. Use "
        f"{'larger parts' if parts else '3 or more'}."
    )


@contextmanager
def explain_single_values(num_images: int, global_size: int) -> Iterator[None]:
    """Explain the error of a norm unknown to `check_batch_norm` that gets a single value.

    Args:
        num_images: Size of this worker's share of the batch.
        global_size: Size of the whole batch.

    Raises:
        SingleValueError: Instead of torch's error.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise SingleValueError(
            f"train.global_batch_size: a norm of the network got a single value per channel in a "
            f"batch of {global_size}, of which this worker has {num_images} ({error}). Use a "
            "larger batch, fewer workers (train.num_workers), or nn.BatchNorm modules, which are "
            "shared by all workers."
        ) from error


class SharedBatchNorm(_BatchNorm):
    """Batch norm over the samples of all workers, some of which may have no samples.

    Everything that the replaced norm has is taken over: parameters, buffers, modules, hooks and
    plain attributes. If its class is of the user's own and runs further modules on its output, e.g.
    an activation, these are run here as well.

    With a single value per channel over all workers the variance is 0, where `nn.BatchNorm1d`
    raises an error. Detecting it here would make every step synchronise; `check_batch_norm` refuses
    it before the first step.

    Args:
        norm: The batch norm to replace.
        workers: The workers, which must all run every forward and backward together.
    """

    workers: Workers
    _after: tuple[str, ...]

    def __init__(self, norm: _BatchNorm, workers: Workers) -> None:
        # Not `super().__init__`: a class of the user's own may take other arguments.
        self.__dict__.update(norm.__dict__, workers=workers, _after=modules_after(norm) or ())
        self.__dict__.pop("_compiled_call_impl", None)  # of `norm.compile()`, it would run `norm`

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2 or input.shape[1] != self.num_features:
            raise ValueError(
                f"expected [B, {self.num_features}, ...], got shape {list(input.shape)}"
            )

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `[B, C, ...]` with the statistics of all workers, or the running ones."""
        is_running = not self.training and self.running_mean is not None
        output = _BatchNorm.forward(self, input) if is_running else self._over_all(input)
        for name in self._after:
            output = cast(nn.Module, self._modules[name])(output)
        return output

    def _over_all(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        values = at_least_fp32(input)
        # Torch's kernels need scale and shift in the type of the values.
        weight, bias = (
            None if given is None else given.to(values.dtype) for given in (self.weight, self.bias)
        )
        output, count, mean, variance = _NormOfAll.apply(  # type: ignore[no-untyped-call]
            values, weight, bias, self.eps, self.workers
        )
        if self.training and self.track_running_stats and self.running_mean is not None:
            self._update_running(count, mean, variance)
        normed: Tensor = output.to(input.dtype)
        return normed

    @torch.no_grad()
    def _update_running(self, count: Tensor, mean: Tensor, variance: Tensor) -> None:
        assert self.num_batches_tracked is not None  # noqa: S101 - exists when statistics do
        self.num_batches_tracked.add_(1)
        momentum: float | Tensor = 1.0 / self.num_batches_tracked.float()
        if self.momentum is not None:
            momentum = self.momentum
        unbiased = variance * (count / (count - 1.0).clamp(min=1.0))
        for running, now in ((self.running_mean, mean), (self.running_var, unbiased)):
            assert running is not None  # noqa: S101
            running.add_(momentum * (now - running))


class _NormOfAll(torch.autograd.Function):
    """Normalise `[B, C, ...]` over all workers' samples, with torch's own kernels for local parts.

    Composed of elementary operations, it would read and write the activations three times as often.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float,
        workers: Workers,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """Return the output, and the count, mean `[C]` and biased variance `[C]` over all."""
        count, mean, variance = _merged(*_own_statistics(values), workers)
        has_samples = values.numel() > 0
        output = _affine(values, mean, variance, weight, bias, eps) if has_samples else +values
        ctx.save_for_backward(values, weight, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(count, mean, variance)
        return output, count, mean, variance

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """Return the gradients, after one exchange of the sums behind mean and variance."""
        values, weight, mean, variance, count = ctx.saved_tensors
        scale = mean.new_ones(mean.shape) if weight is None else weight
        of_scale = of_bias = torch.zeros_like(mean)
        if values.numel():
            # In evaluation mode, as the statistics do not depend on this worker alone.
            _, of_scale, of_bias = torch.ops.aten.native_batch_norm_backward(
                gradient, values, scale, mean, variance, None, None, False, ctx.eps,
                [False, True, True],
            )  # fmt: skip
        sums = all_reduce(torch.stack([of_scale, of_bias])) / count
        of_values = gradient
        if values.numel():
            factor = scale * torch.rsqrt(variance + ctx.eps)
            of_values = _affine(
                values, mean, variance, -factor * sums[0], -factor * sums[1], ctx.eps
            )
            of_values.addcmul_(gradient, factor.view(1, -1, *(1,) * (values.ndim - 2)))
        of_weight = None if weight is None else of_scale
        return of_values, of_weight, of_bias if ctx.needs_input_grad[2] else None, None, None


def _affine(
    values: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None,
    eps: float,
) -> Tensor:  # fmt: skip
    """Return values normalised by the given statistics, scaled and shifted, in one pass."""
    found = torch.native_batch_norm(values, weight, bias, mean, variance, False, 0.0, eps)
    output: Tensor = found[0]
    return output


def _own_statistics(values: Tensor) -> tuple[int, Tensor, Tensor]:
    """Return count, mean `[C]` and biased variance `[C]` of this worker's samples, if any."""
    channels = values.shape[1]
    if not values.numel():
        return 0, values.new_zeros(channels), values.new_zeros(channels)
    mean, variance = torch.batch_norm_update_stats(values, None, None, 0.0)
    return values.numel() // channels, mean, variance


def _merged(
    count: int, mean: Tensor, variance: Tensor, workers: Workers
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the count (scalar), mean `[C]` and biased variance `[C]` over all workers.

    Merging means and squared deviations from them (Chan et al., 1979) keeps the precision that sums
    of squares would lose, and needs one exchange.
    """
    own = torch.cat([mean.new_full((1,), float(count)), mean, variance * count])
    # Each worker fills its own row; the others are 0, so that the sum has all rows.
    rows = own.new_zeros(workers.world_size, len(own))
    rows[workers.rank] = own
    rows = all_reduce(rows)
    counts, means, squares = rows[:, :1], *rows[:, 1:].chunk(2, dim=1)
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    return total, mean, (squares.sum(0) + (counts * (means - mean).square()).sum(0)) / total
