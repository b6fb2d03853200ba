"""Networks from outside the zoo: `timm:NAME` and `package.module:callable`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

from krscale.errors import UserError, unknown_name


def import_callable(name: str, where: str) -> Callable[..., Any]:
    """Return the callable that `package.module:callable` names.

    Raises:
        UserError: If the module cannot be imported, or holds no callable of this name.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or module_name.startswith("."):
        raise UserError(
            f"{where}.model: {name!r}: cannot import {module_name!r}; "
            "write the full name of the module, as in 'package.module:callable'."
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"{where}.model: {name!r}: cannot import {module_name!r} ({error}). "
            "It must be importable where krscale runs: installed, or on PYTHONPATH."
        ) from error
    found = getattr(module, attribute, None)
    if found is None:
        public = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise unknown_name(f"callable of {module_name}", attribute, public, f"{where}.model")
    if not callable(found):
        raise UserError(f"{where}.model: {name!r} is not callable ({type(found).__name__}).")
    return found  # type: ignore[no-any-return]


def timm_builder(name: str, where: str) -> Callable[..., nn.Module]:
    """Return a function that builds the network `name` of the timm library.

    timm networks have no capacity dial: `width` does not change them, so they serve as teachers,
    not as a ladder of students. Options go to `timm.create_model`, e.g. `{pretrained = true}`.

    Raises:
        UserError: If timm cannot be imported, or has no network of this name.
    """
    timm = _import_timm(where)
    if not timm.is_model(name):
        raise unknown_name("timm model", name, timm.list_models(), f"{where}.model")

    def build(num_classes: int, in_channels: int, width: int, **options: Any) -> nn.Module:
        try:
            model: nn.Module = timm.create_model(
                name, num_classes=num_classes, in_chans=in_channels, **options
            )
        except TypeError as error:  # how timm reports an option that the network does not take
            raise UserError(
                f"{where}.options: timm cannot build {name!r} with {sorted(options)}: {error}"
            ) from error
        return model

    return build


def _import_timm(where: str) -> Any:
    try:
        return importlib.import_module("timm")
    except (ImportError, RuntimeError) as error:
        # RuntimeError: a torchvision that was built for another torch, which timm imports.
        raise UserError(
            f"{where}.model: models written 'timm:NAME' need timm, which cannot be imported "
            f"({type(error).__name__}: {error}). Install the extra krscale[vision], with a "
            "torchvision that matches the installed torch."
        ) from error
