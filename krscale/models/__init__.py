"""The networks: a small zoo with one capacity dial each, and any network of the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from krscale.errors import UserError, nearest, unknown_name
from krscale.models.foreign import import_callable, timm_builder
from krscale.models.mobilenet import mobilenet
from krscale.models.resnet import resnet
from krscale.models.wide_resnet import wide_resnet

__all__ = ["ZOO", "build_model"]

ZOO: dict[str, Callable[..., nn.Module]] = {
    "mobilenet": mobilenet,
    "resnet": resnet,
    "wide_resnet": wide_resnet,
}
"""Networks by name; each takes (num_classes, in_channels, width) and its own options.

Zoo networks expose `tap_paths`, module paths of all taps but the classifier in depth order, and
`stage_ends`, the 1-based number of the last tap of each stage.
"""

_DIAL = ("num_classes", "in_channels", "width")


def build_model(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    width: int,
    options: Mapping[str, Any],
    where: str = "model",
) -> nn.Module:
    """Build a network by name.

    Args:
        name: A name of `ZOO`; `timm:NAME` for a network of timm; or `package.module:callable` for
            a callable that takes `num_classes`, `in_channels` and `width` by keyword.
        num_classes: Logits `K`.
        in_channels: Channels of the images.
        width: The capacity dial.
        options: Further keyword arguments of the network.
        where: The config table the name came from, e.g. `"teacher"`; used in errors.

    Returns:
        The network, mapping images `[B, in_channels, H, W]` to logits `[B, K]`.

    Raises:
        UserError: If the name is unknown, its module cannot be imported, an option is not
            accepted, or what is built is not an `nn.Module`.
    """
    build = _find(name, where)
    dial = {"num_classes": num_classes, "in_channels": in_channels, "width": width}
    _check_arguments(build, name, dial, options, where)
    model = build(**dial, **options)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"{where}.model: {name} returned {type(model).__name__}, not a torch.nn.Module."
        )
    return model


def _find(name: str, where: str) -> Callable[..., Any]:
    if name.startswith("timm:"):
        return timm_builder(name.removeprefix("timm:"), where)
    if ":" in name:
        return import_callable(name, where)
    if name not in ZOO:
        error = unknown_name("model", name, ZOO, f"{where}.model")
        raise UserError(
            f"{error} Others are written 'timm:NAME' or, your own, 'package.module:callable'."
        )
    return ZOO[name]


def _check_arguments(
    build: Callable[..., Any],
    name: str,
    dial: Mapping[str, int],
    options: Mapping[str, Any],
    where: str,
) -> None:
    """Refuse options the callable does not take, before it runs."""
    twice = [option for option in options if option in dial]
    if twice:
        raise UserError(
            f"{where}.options: {twice[0]!r} is set by krscale itself "
            f"({', '.join(_DIAL)}) and cannot be an option."
        )
    try:
        signature = inspect.signature(build)
    except ValueError:
        return  # a callable written in C may have no signature; the call itself then decides
    kinds = {p.kind for p in signature.parameters.values()}
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        allowed = [p for p in signature.parameters if p not in dial]
        for option in options:
            if option not in allowed:
                raise _unknown_option(name, option, allowed, where)
    try:
        signature.bind(**dial, **options)
    except TypeError as error:
        raise UserError(
            f"{where}: {name} must take {', '.join(_DIAL)} by keyword, and its options "
            f"{sorted(options)}: {error}."
        ) from None


def _unknown_option(name: str, option: str, allowed: list[str], where: str) -> UserError:
    if allowed:
        return unknown_name(f"option of {name}", option, allowed, f"{where}.options")
    guess = nearest(option, _DIAL)
    hint = f" Did you mean {where}.{guess}?" if guess else ""
    return UserError(f"{where}.options: unknown option {option!r}.{hint} {name} takes none.")
