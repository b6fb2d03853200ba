"""Taps: the outputs of a network's blocks, read by module path.

A network with taps `("layer1.0", "layer2.0")` has `D = 3` taps in depth order: those two, and its
own classifier, whose output the network returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from krscale.errors import UserError, unknown_name


@dataclass(frozen=True)
class TapOutputs:
    """The outputs of a tapped network for a batch.

    Attributes:
        logits: `[B, K]`, the network's own output.
        features: One tensor per tap path in depth order, as the block gave it: `[B, C, H, W]`,
            `[B, T, C]` or `[B, C]`. The classifier is not among them.
    """

    logits: Tensor
    features: tuple[Tensor, ...]


class TappedModel(nn.Module):
    """A network that also returns the outputs of the blocks at `paths`.

    The hooks exist only while `forward` runs, so the network can be copied, pickled, exported or
    compiled as if it had never been tapped. Wrappers (`DistributedDataParallel`, `torch.compile`)
    around `model` are looked through.

    Attributes:
        model: The network, a registered submodule: its weights are under `model.` in the state.
        paths: Module paths of the taps within the network, in depth order.
    """

    def __init__(self, model: nn.Module, paths: Sequence[str]) -> None:
        super().__init__()
        check_taps(model, paths)
        self.model = model
        self.paths = tuple(paths)

    def forward(self, images: Tensor) -> TapOutputs:
        """Run the network once.

        Args:
            images: `[B, C, H, W]`.

        Raises:
            UserError: If a tapped block did not run, or did not return a tensor.
        """
        return run_tapped(self.model, self.paths, images)


def run_tapped(model: nn.Module, paths: Sequence[str], images: Tensor) -> TapOutputs:
    """Run `model` on `images` and return its logits and the outputs of the blocks at `paths`.

    A block that runs several times in one forward gives its last output.

    Raises:
        UserError: If a tapped block did not run, or did not return a tensor.
    """
    network = unwrapped(model)
    outputs: dict[str, Any] = {}
    handles = []
    try:
        for path in paths:
            hook = partial(_record, outputs, path)
            handles.append(network.get_submodule(path).register_forward_hook(hook))
        logits = model(images)
    finally:
        for handle in handles:
            handle.remove()
    collected: TapOutputs = _collect(logits, outputs, paths)
    return collected


def check_taps(model: nn.Module, paths: Sequence[str], where: str = "") -> None:
    """Refuse tap paths that `model` does not have, or that are named twice.

    Args:
        model: The network, wrapped or not.
        paths: Module paths such as `"layer1.0"`.
        where: File and key of the paths, for the message.

    Raises:
        UserError: Naming the path and the nearest one that exists.
    """
    prefix = f"{where}: " if where else ""
    known = [name for name, _ in unwrapped(model).named_modules() if name]
    for path in paths:
        if path not in known:
            raise unknown_name("tap", path, known, where)
        if list(paths).count(path) > 1:
            raise UserError(f"{prefix}tap {path!r} is named twice; every tap may appear once.")


def pool(feature: Tensor, grid: int = 1) -> Tensor:
    """Return one vector per sample, `[B, F]` fp32: means over positions of a tap's feature.

    Args:
        feature: `[B, C, H, W]` (mean over height and width), `[B, T, C]` (mean over tokens), or
            `[B, C]` (as it is).
        grid: Cut an image into `grid x grid` cells, and tokens into `grid^2` runs, or as many as
            there are, and take the mean of each: `F` is the number of cells times `C`.

    Raises:
        UserError: If the feature has another number of dimensions.
    """
    if feature.ndim == 4:
        if grid == 1:
            return feature.float().mean(dim=(2, 3))
        height, width = feature.shape[2:]
        rows, columns = min(grid, height), min(grid, width)
        if height % rows == 0 and width % columns == 0:
            # The same means; its gradient is faster, and on GPUs the same in every run.
            means = F.avg_pool2d(feature.float(), (height // rows, width // columns))
        else:
            means = F.adaptive_avg_pool2d(feature.float(), (rows, columns))
        return means.flatten(1)
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
    outputs: dict[str, Any], path: str, module: nn.Module, arguments: Any, output: Any
) -> None:
    outputs[path] = output


# Under torch.compile the network is traced, hooks included; nothing is gained by tracing this.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _collect(logits: Tensor, outputs: dict[str, Any], paths: Sequence[str]) -> TapOutputs:
    return TapOutputs(logits, tuple(_tensor(outputs, path) for path in paths))


def _tensor(outputs: dict[str, Any], path: str) -> Tensor:
    output = outputs.get(path)
    if isinstance(output, Tensor):
        return output
    if path not in outputs:
        raise UserError(f"tap {path!r}: this block did not run; tap one that every image crosses.")
    raise UserError(
        f"tap {path!r}: this block returns {type(output).__name__}, not a tensor; tap another one."
    )
