"""The networks: a small zoo with one capacity dial per network, and the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from krscale.errors import UserError, unknown_name
from krscale.foreign import reason_of
from krscale.models.arguments import arguments_for, call_with
from krscale.models.foreign import import_callable, located
from krscale.models.given import find_given, is_given
from krscale.models.libraries import LIBRARIES, is_pretrained, library_builder
from krscale.models.mobilenet import mobilenet
from krscale.models.outputs import read_logits, refuse_programs, unwrap_all
from krscale.models.resnet import resnet
from krscale.models.wide_resnet import wide_resnet

__all__ = ["ZOO", "build_model", "is_pretrained"]

ZOO: dict[str, Callable[..., nn.Module]] = {
    "mobilenet": mobilenet,
    "resnet": resnet,
    "wide_resnet": wide_resnet,
}
"""Networks by name; each takes (num_classes, in_channels, width) and its own options.

Zoo networks expose `tap_paths`, module paths of all taps but the classifier in depth order, and
`stage_ends`, the 1-based number of the last tap of each stage.
"""


def build_model(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    width: int,
    options: Mapping[str, Any],
    output_key: str = "",
    fresh: bool = False,
    where: str = "model",
) -> nn.Module:
    """Build a network by name.

    Args:
        name: A name of `ZOO`; `timm:NAME`, `torchvision:NAME` or `hf:FOLDER` for a network of these
            libraries; `package.module:callable` for one of the user's own, which takes any of the
            three numbers below by keyword, under any usual name; or `object:NAME` for one that was
            given to `krscale.search`.
        num_classes: Number of logits `K`.
        in_channels: Channels of the images.
        width: The capacity dial, for networks that have one.
        options: Further keyword arguments for building the network.
        output_key: Name or position of the logits among several outputs; empty detects them.
        fresh: Whether to load no pretrained weights, because other weights will replace them.
        where: The config table that the name is from, e.g. `"teacher"`; used in error messages.

    Returns:
        The network, which maps images `[B, in_channels, H, W]` to logits `[B, K]` even if it
        originally returned something else. Wrappers for compilation or data-parallel training are
        removed.

    Raises:
        UserError: If the name is unknown, its module cannot be imported, an option is not
            accepted, building it fails, or the result is not an `nn.Module`.

    Example:
        >>> size = {"num_classes": 10, "in_channels": 1, "width": 4}
        >>> build_model("resnet", **size, options={"num_blocks": 1}).tap_paths
        ('stages.0.0', 'stages.1.0')
        >>> build_model("resnet", **size, options={"num_block": 1})
        Traceback (most recent call last):
        krscale.errors.UserError: model.options: ... 'num_block'. Did you mean 'num_blocks'? ...
    """
    dial = {"num_classes": num_classes, "in_channels": in_channels, "width": width}
    if name in ZOO:
        if output_key:
            raise UserError(
                f"{where}.output_key: {output_key!r} is set, but {name} returns a single tensor; "
                "leave the key out."
            )
        arguments = arguments_for(ZOO[name], name, dial, options, where)
        try:
            return ZOO[name](**arguments)
        except torch.OutOfMemoryError:  # the GPU may be shared: a trial may succeed later
            raise
        except RuntimeError as error:  # raised by torch if the machine has too little memory
            raise UserError(
                f"{where}.model: {name} cannot be built with {_written(arguments)}: "
                f"{reason_of(error)}."
            ) from error
    shapes_only = torch.empty(0).device.type == "meta"
    if from_library := library_builder(name, where):
        _refuse_dial(options, where)
        built: Any = from_library(num_classes, in_channels, fresh or shapes_only, **options)
    else:
        built = _build_own(name, dial, options, where)
    if not isinstance(built, nn.Module):
        raise UserError(
            f"{where}.model: {name} returned {type(built).__name__}, not a torch.nn.Module."
        )
    refuse_programs(built, f"{where}.model: {name}")
    model = unwrap_all(built)
    for kind, values in (("weights", model.parameters()), ("buffers", model.buffers())):
        if not shapes_only and any(value.is_meta for value in values):
            raise UserError(
                f"{where}.model: {name} returns {kind} without values, on the device 'meta'. A "
                "function that keeps what it once built (functools.cache) must build a new one "
                "each time."
            )
    _refuse_lazy(model, name, where)
    read_logits(model, output_key, where)
    return model


def _refuse_lazy(model: nn.Module, name: str, where: str) -> None:
    """Refuse layers without weights before their first run: they could not be initialised again."""
    weights = [*model.named_parameters(), *model.named_buffers()]
    lazy = dict.fromkeys(path.rpartition(".")[0] for path, value in weights if is_lazy(value))
    if not lazy:
        return
    layers = [f"{path!r} ({type(model.get_submodule(path)).__name__})" for path in lazy]
    more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
    raise UserError(
        f"{where}.model: {name} has layers whose sizes are not known until they first run: "
        f"{', '.join(layers[:3])}{more}. Give their sizes: nn.Linear(64, 10), not "
        "nn.LazyLinear(10); or run the network on an image before it is returned."
    )


def _build_own(name: str, dial: Mapping[str, int], options: Mapping[str, Any], where: str) -> Any:
    build = _find_own(name, where)
    arguments = arguments_for(build, name, dial, options, where)
    try:
        return call_with(build, arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{where}.model: {name} fails when it is built with {_written(arguments)}: "
            f"{located(error)}."
        ) from error


def _find_own(name: str, where: str) -> Callable[..., Any]:
    if is_given(name):
        return find_given(name, where)
    if ":" in name:
        return import_callable(name, where)
    error = unknown_name("model", name, ZOO, f"{where}.model")
    others = ", ".join(f"'{library}:...'" for library in LIBRARIES)
    raise UserError(f"{error} Others are written {others} or, your own, 'package.module:callable'.")


def _refuse_dial(options: Mapping[str, Any], where: str) -> None:
    for option in ("num_classes", "in_channels", "in_chans", "width", "num_labels"):
        if option in options:
            raise UserError(
                f"{where}.options: {option!r} is set by krscale itself and cannot be an option."
            )


def _written(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"
