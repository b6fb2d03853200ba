"""Taps: the outputs of a network's blocks, read by module path.

A network with taps `("layer1.0", "layer2.0")` has `D = 3` taps in depth order: these two and its
own classifier, whose output is the network's output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from krscale.errors import UserError, unknown_name
from krscale.knowledge.cells import cell_means
from krscale.knowledge.hooks import call_in, hooked, is_compiled, this_thread
from krscale.knowledge.layouts import (
    USUAL,
    LayerTrace,
    Layout,
    TapShape,
    check_rows,
    find_layouts,
    other_size,
    usual_layout,
    zeros,
)
from krscale.knowledge.modes import left_as_it_was

LAYOUTS_ATTRIBUTE = "krscale_tap_layouts"
"""Attribute of a network that holds the layouts of its taps, by path."""


@dataclass(frozen=True)
class TapOutputs:
    """The outputs of a tapped network for a batch.

    Attributes:
        logits: `[B, K]`, the network's own output.
        features: One tensor per tap path in depth order: `[B, C, H, W]`, `[B, T, C]` or `[B, C]`,
            as the block returned it except for its layout (`settle_layouts`). The classifier is not
            included.
        stages: The same for blocks at which stages end, if these are read, too.
        paths: Module paths of the taps in `features`; empty if unknown.
    """

    logits: Tensor
    features: tuple[Tensor, ...]
    stages: tuple[Tensor, ...] = ()
    paths: tuple[str, ...] = ()


class TappedModel(nn.Module):
    """A network that also returns the outputs of the blocks at `paths`.

    The hooks exist only while `forward` runs, so the network can be copied, pickled, exported or
    compiled as if it had no taps. `model` may be wrapped (`DistributedDataParallel`,
    `torch.compile`); the paths are those within the wrapped network.

    Attributes:
        model: The network, a registered submodule: its weights are under `model.` in the state.
        paths: Module paths of the taps within the network, in depth order.
        stages: Module paths of blocks whose outputs are read as `TapOutputs.stages`.
    """

    def __init__(self, model: nn.Module, paths: Sequence[str], stages: Sequence[str] = ()) -> None:
        super().__init__()
        check_taps(model, paths)
        check_taps(model, stages)
        self.model = model
        self.paths, self.stages = tuple(paths), tuple(stages)
        self.is_compiled = is_compiled(model)

    def forward(self, images: Tensor, read: bool = True) -> TapOutputs:
        """Run the network once.

        Args:
            images: `[B, C, H, W]`.
            read: Whether to read its blocks. If not, only the logits are returned, unless the
                network or a part of it is compiled: its code would have no taps from then on.

        Raises:
            UserError: If a tapped block did not run, or did not return a tensor.
        """
        if not read and not self.is_compiled:
            return run_tapped(self.model, (), images)
        return run_tapped(self.model, self.paths, images, self.stages)


def run_tapped(
    model: nn.Module, paths: Sequence[str], images: Tensor, stages: Sequence[str] = ()
) -> TapOutputs:
    """Run `model` on `images` and return its logits and the outputs of the blocks at `paths`.

    The outputs of the blocks at `stages`, which may be the same blocks, are returned as well. A
    block that runs several times in one forward gives its last output.

    Raises:
        UserError: If a tapped block did not run or did not return a tensor, or if the network is
            compiled and its compiled code has no taps.
    """
    network = unwrapped(model)
    outputs: dict[str, Any] = {}
    skipped: dict[str, bool] = {}
    handles = []
    owner = this_thread()  # once: compiled code would otherwise compute it for each hook
    try:
        for path in dict.fromkeys((*paths, *stages)):
            hook = partial(call_in, owner, partial(_record, outputs, skipped, path))
            handles.append(network.get_submodule(path).register_forward_hook(hook))
        logits = model(images)
    finally:
        for handle in handles:
            handle.remove()
    collected: TapOutputs = _collect(model, logits, outputs, paths, stages)
    _check_gradients(network, outputs, skipped)
    return collected


def settle_layouts(
    model: nn.Module,
    paths: Sequence[str],
    image_shape: Sequence[int],
    declared: str = "",
    where: str = "model",
) -> None:
    """Determine the channel axes of a network's taps, and store them with the network.

    From then on its taps are read as `[B, C, H, W]`, `[B, T, C]` or `[B, C]`.

    Args:
        model: The network; on meta tensors nothing is computed.
        paths: Module paths of its taps.
        image_shape: `(C, H, W)`.
        declared: `"channels_first"` or `"channels_last"`; if empty, it is determined automatically.
        where: The config table of the network, for errors.

    Raises:
        UserError: If the channels of a tap cannot be determined, or if its first dimension is not
            the batch.
    """
    network = unwrapped(model)
    setattr(network, LAYOUTS_ATTRIBUTE, layouts_of(network, paths, image_shape, declared, where))


def layouts_of(
    network: nn.Module,
    paths: Sequence[str],
    image_shape: Sequence[int],
    declared: str = "",
    where: str = "model",
) -> dict[str, Layout]:
    """Return the channel axes of a network's taps, determined as in `settle_layouts`.

    The network's stored layouts are not changed, as another thread may be reading its taps.
    """
    trace = LayerTrace(network, paths)
    with hooked(trace.hooks()):
        shapes = _shapes(network, paths, image_shape, where)
    others = _shapes_reached(network, paths, other_size(image_shape))
    taps = {
        path: TapShape(shape, others.get(path), trace.until[path]) for path, shape in shapes.items()
    }
    return find_layouts(network, taps, declared, where)


@torch.no_grad()
def _shapes(
    network: nn.Module, paths: Sequence[str], image_shape: Sequence[int], where: str
) -> dict[str, tuple[int, ...]]:
    outputs: dict[str, Any] = {}
    _run_black(network, paths, image_shape, outputs)
    shapes = {path: tuple(_tensor(outputs, path).shape) for path in paths}
    check_rows(shapes, where)
    return shapes


@torch.no_grad()
def _shapes_reached(
    network: nn.Module, paths: Sequence[str], image_shape: Sequence[int]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the taps that are reached, even if a later layer fails at this size."""
    outputs: dict[str, Any] = {}
    with suppress(Exception):  # many networks accept images of one size only
        _run_black(network, paths, image_shape, outputs)
    return {path: tuple(_tensor(outputs, path).shape) for path in outputs}


def _run_black(
    network: nn.Module, paths: Sequence[str], image_shape: Sequence[int], outputs: dict[str, Any]
) -> None:
    """Run a network on black images; add the outputs of its blocks to `outputs` as they end."""
    hooks = [(network.get_submodule(path), partial(_record, outputs, {}, path)) for path in paths]
    with hooked(hooks), left_as_it_was(network), torch.random.fork_rng(devices=[]):
        network.eval()(zeros(network, image_shape))


def check_taps(model: nn.Module, paths: Sequence[str], where: str = "") -> None:
    """Refuse tap paths that do not exist in `model`, or that are named twice.

    Args:
        model: The network, wrapped or not.
        paths: Module paths such as `"layer1.0"`.
        where: File and key of the paths, for the error message.

    Raises:
        UserError: With the path and the nearest one that exists.
    """
    prefix = f"{where}: " if where else ""
    network = unwrapped(model)
    known = [name for name, _ in network.named_modules() if name]
    for path in paths:
        if path in known and isinstance(network.get_submodule(path), torch.jit.ScriptModule):
            raise UserError(f"{prefix}tap {path!r} is TorchScript, whose blocks cannot be read.")
        if path not in known:
            raise unknown_name("tap", path, known, where)
        if list(paths).count(path) > 1:
            raise UserError(f"{prefix}tap {path!r} is named twice; every tap may appear once.")


def pool(feature: Tensor, grid: int = 1) -> Tensor:
    """Return one vector per sample, `[B, F]` fp32: means over the positions of a tap's feature.

    Args:
        feature: `[B, C, H, W]` (mean over height and width), `[B, T, C]` (mean over tokens), or
            `[B, C]` (unchanged).
        grid: Divide an image into `grid x grid` cells, and tokens into `grid^2` runs, but not more
            than there are positions, and average over each: `F` is the number of cells times `C`.

    Raises:
        UserError: If the feature has another number of dimensions.
    """
    if feature.ndim == 4:
        if grid == 1:
            return feature.float().mean(dim=(2, 3))
        height, width = feature.shape[2:]
        return cell_means(feature.float(), (min(grid, height), min(grid, width))).flatten(1)
    if feature.ndim == 3:
        if grid == 1:
            return feature.float().mean(dim=1)
        runs = min(grid**2, feature.shape[1])
        return F.adaptive_avg_pool1d(feature.float().transpose(1, 2), runs).flatten(1)
    if feature.ndim == 2:
        return feature.float()
    raise UserError(
        f"a tap gave a tensor of shape {list(feature.shape)}; allowed: [B, C, H, W], [B, T, C] "
        "or [B, C]. Tap another block."
    )


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network within torch.compile (`_orig_mod`) and data-parallel wrappers."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(inner := model._modules.get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model


def _record(
    outputs: dict[str, Any],
    skipped: dict[str, bool],
    path: str,
    module: nn.Module,
    arguments: Any,
    output: Any,
) -> None:
    """Record the output of a block, and whether the block returned one of its inputs."""
    outputs[path] = output
    skipped[path] = any(given is output for given in arguments)


# Under torch.compile the network is traced with its hooks; tracing this function gains nothing.
# `torch.compiler.disable` would import torch's compiler when this module is imported, not when the
# function is first called: 2 seconds of processor time in every process that rebuilds a network.
@torch._disable_dynamo  # type: ignore[attr-defined]
def _collect(
    model: nn.Module,
    logits: Tensor,
    outputs: dict[str, Any],
    paths: Sequence[str],
    stages: Sequence[str],
) -> TapOutputs:
    missing = [path for path in (*paths, *stages) if path not in outputs]
    if missing and is_compiled(model):
        raise UserError(
            f"tap {missing[0]!r}: the network, or a part of it, is compiled and was run without "
            "taps before (torch.compile uses that code again, which has none); or this block did "
            "not run. Run the network through its taps from the start, in validation too (of a "
            "KRLoss: `kr.student(images).logits` and `kr.teacher(images).logits`)."
        )
    layouts: Mapping[str, str] = getattr(unwrapped(model), LAYOUTS_ATTRIBUTE, {})

    def read(path: str) -> Tensor:
        feature = _tensor(outputs, path)
        if not layouts:
            return feature
        return usual_layout(feature, layouts.get(path, USUAL.get(feature.ndim, "")))

    return TapOutputs(logits, tuple(map(read, paths)), tuple(map(read, stages)), tuple(paths))


@torch._disable_dynamo  # type: ignore[attr-defined]
def _check_gradients(
    network: nn.Module, outputs: dict[str, Any], skipped: Mapping[str, bool]
) -> None:
    """In training, refuse tapped blocks whose output has no gradient and would teach nothing.

    Frozen blocks are allowed, and so are blocks that were skipped, as in stochastic depth.
    """
    if not torch.is_grad_enabled():
        return
    for path in outputs:
        if _tensor(outputs, path).requires_grad or skipped[path]:
            continue
        if any(parameter.requires_grad for parameter in network.get_submodule(path).parameters()):
            raise UserError(
                f"tap {path!r}: this block was run without gradients, so the student would learn "
                "nothing from it: its output is detached, it runs under torch.no_grad(), or it is "
                "one of several blocks in a checkpoint that is reentrant (with "
                "torch.utils.checkpoint.checkpoint(..., use_reentrant=False) it is not). Or tap "
                "another block."
            )


def tensor_in(output: Any) -> Tensor | None:
    """Return the tensor that a tap reads of what its block returned; None if there is none."""
    if isinstance(output, tuple | list):  # e.g. the encoder layers of transformers
        tensors = [item for item in output if isinstance(item, Tensor)]
        output = tensors[0] if len(tensors) == 1 else output
    if isinstance(output, Mapping):
        output = output.get("last_hidden_state", output)
    return output if isinstance(output, Tensor) else None


def _tensor(outputs: dict[str, Any], path: str) -> Tensor:
    output = outputs.get(path)
    if (found := tensor_in(output)) is not None:
        return found
    if path not in outputs:
        raise UserError(f"tap {path!r}: this block did not run; tap one that every image crosses.")
    raise UserError(
        f"tap {path!r}: this block returns {type(output).__name__}, not a tensor; tap another one."
    )
