"""Measure a network: parameters, FLOPs, bytes, latency; and find the width for a given size."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from krscale.errors import UserError
from krscale.knowledge.modes import copy_of, left_as_it_was

MAX_WIDTH = 1 << 16
"""Larger widths are not tried: no network of the zoo is that large."""


def num_parameters(model: nn.Module) -> int:
    """Return the number of parameters; shared ones count once.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> num_parameters(nn.Sequential(layer, layer))  # one layer, used twice
        8
    """
    return sum(p.numel() for p in model.parameters())


def num_bytes(model: nn.Module) -> int:
    """Return the bytes of parameters and buffers in their precision; shared ones count once.

    Example:
        >>> num_bytes(nn.Linear(3, 2)), num_bytes(nn.Linear(3, 2, dtype=torch.bfloat16))
        (32, 16)
    """
    tensors = [*model.parameters(), *model.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors)


def count_flops(model: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Return the floating-point operations of one forward pass over one image.

    A multiply-add counts as 2 FLOPs (papers that write "FLOPs" often count it as 1). Convolutions,
    products of matrices and vectors, attention and recurrent layers count. Norms, activations and
    pooling do not, nor does a product that is written as a multiplication and a sum. Nothing is
    computed, since a copy of the network runs on the meta device. If it cannot run there, because
    it depends on values, it runs on its own device.

    Args:
        model: The network; not modified.
        input_shape: `(C, H, W)` of one image.

    Example:
        >>> convolution = nn.Conv2d(3, 8, kernel_size=3, padding=1)
        >>> count_flops(convolution, (3, 4, 4)) == 2 * (3 * 3 * 3) * 8 * (4 * 4)
        True
    """
    own = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        return _count(copy_of(model).to("meta"), input_shape, torch.device("meta"))
    except Exception:
        if own.type == "meta":
            raise
    return _count(copy_of(model), input_shape, own)


def _count(model: nn.Module, input_shape: tuple[int, int, int], device: torch.device) -> int:
    image = torch.zeros(1, *input_shape, device=device)
    counter = FlopCounterMode(display=False, custom_mapping=_UNCOUNTED)
    with torch.no_grad(), _plain_kernels(), counter:
        model.eval()(image)
    return int(counter.get_total_flops())


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Run attention and recurrent layers as separate products on every device.

    Real devices use fused kernels for them, which torch's counter does not count.
    """
    mha = torch.backends.mha
    libraries: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)
    before = mha.get_fastpath_enabled(), [library.enabled for library in libraries]
    try:
        mha.set_fastpath_enabled(False)
        for library in libraries:
            # Not with `flags()`, which also sets other options and warns about them.
            library.enabled = False
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        mha.set_fastpath_enabled(before[0])
        for library, enabled in zip(libraries, before[1], strict=True):
            library.enabled = enabled


def _dot(a: Sequence[int], _b: Any, **_: Any) -> int:
    return 2 * math.prod(a)  # product of a matrix or a vector with a vector


def _addmv(_to: Any, a: Sequence[int], b: Any, **_: Any) -> int:
    return _dot(a, b)


def _addbmm(_to: Any, a: Sequence[int], b: Sequence[int], **_: Any) -> int:
    return 2 * math.prod(a) * b[-1]


def _bilinear(a: Sequence[int], weight: Sequence[int], _b: Any, *_: Any, **__: Any) -> int:
    # The product of [B, I] and [O, I, J], then of the resulting [B, O, J] and [B, J].
    return 2 * a[0] * (math.prod(weight) + weight[0] * weight[2])


_UNCOUNTED = {
    torch.ops.aten.mv: _dot,
    torch.ops.aten.dot: _dot,
    torch.ops.aten.addmv: _addmv,
    torch.ops.aten.addbmm: _addbmm,
    torch.ops.aten._trilinear: _bilinear,  # called only by `nn.Bilinear`
}
"""Products for which `FlopCounterMode` has no formula."""


_DRAWS = {torch.ops.aten.normal_, torch.ops.aten.uniform_}


class _WithoutDraws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Skips random numbers for weights without storage, which take half of the time to build."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket in _DRAWS and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def meta_tensors() -> Iterator[None]:
    """Create all tensors on the meta device within the block, and draw no numbers for them."""
    with torch.device("meta"), _WithoutDraws():  # type: ignore[no-untyped-call]
        yield


def on_meta(build: Callable[[int], nn.Module], width: int) -> nn.Module:
    """Return a network on meta tensors, or on the CPU if its constructor depends on values."""
    try:
        with meta_tensors(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # e.g. weights copied to meta tensors
            return build(width)
    except Exception:  # noqa: BLE001 - whatever it is, the real build says it better
        return build(width)


def latency_ms(model: nn.Module, input_shape: tuple[int, int, int], num_threads: int = 1) -> float:
    """Return the median milliseconds of one forward pass over one image.

    It is measured in inference mode on the network's device. Compare it only with values measured
    on the same machine while it is otherwise idle.

    Args:
        model: The network; its train or eval mode is restored.
        input_shape: `(C, H, W)` of one image.
        num_threads: Number of threads that torch may use.
    """
    from torch.utils import benchmark  # importing takes 0.2 s, which most processes can avoid

    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    image = torch.zeros(1, *input_shape, device=device)
    with left_as_it_was(model), torch.inference_mode():
        model.eval()
        timer = benchmark.Timer(
            "model(image)", globals={"model": model, "image": image}, num_threads=num_threads
        )
        timer.timeit(3)  # the first passes allocate and choose kernels
        return float(timer.blocked_autorange(min_run_time=0.2).median) * 1e3


def sizes_by_width(build: Callable[[int], nn.Module]) -> Callable[[int], int]:
    """Return a function that maps a width to the number of parameters and builds each network once.

    Networks are built on the meta device, so that large ones cost neither memory nor time.

    Example:
        >>> size_at = sizes_by_width(lambda width: nn.Linear(width, width, bias=False))
        >>> size_at(10), size_at(100_000)  # neither has storage
        (100, 10000000000)
    """
    return functools.cache(lambda width: num_parameters(on_meta(build, width)))


def nearest_width(size_at: Callable[[int], int], target: float, multiple: int = 1) -> int:
    """Return the width whose number of parameters is nearest to `target` on a log scale.

    Args:
        size_at: What `sizes_by_width` returned; it must not decrease with the width.
        target: Wanted number of parameters. A target below the smallest network gives the smallest
            width: compare `num_parameters` with the target if the distance matters.
        multiple: Only multiples of this are tried.

    Raises:
        UserError: If the target is not positive, or no width up to `MAX_WIDTH` reaches it.

    Example:
        >>> size_at = sizes_by_width(lambda width: nn.Linear(width, width, bias=False))
        >>> nearest_width(size_at, 1000), nearest_width(size_at, 1000, multiple=10)
        (32, 30)
    """
    if not target > 0 or not math.isfinite(target):
        raise UserError(f"The wanted number of parameters must be positive (got {target}).")

    def size(step: int) -> int:
        return size_at(step * multiple)

    low, high = 0, 1  # size(low) < target <= size(high), once the first loop has ended
    while size(high) < target:
        low, high = high, high * 2
        if high * multiple > MAX_WIDTH:
            raise UserError(
                f"No width up to {MAX_WIDTH} gives {target:,.0f} parameters; width {multiple} has "
                f"{size(1):,} and width {low * multiple} has {size(low):,}. "
                f"Does the network use its width?"
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) < target else (low, middle)
    nearest_below = low > 0 and target / size(low) <= size(high) / target
    return multiple * (low if nearest_below else high)
