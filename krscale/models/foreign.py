"""Import a callable of the user's own, `package.module:callable`, and locate its errors."""

from __future__ import annotations

import importlib
import site
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
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
        with _with_values():
            module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a script may parse arguments when it is imported
        raise _import_error(name, module_name, error, where) from error
    found = getattr(module, attribute, None)
    if found is None:
        public = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise unknown_name(f"callable of {module_name}", attribute, public, f"{where}.model")
    if isinstance(found, nn.Module):
        raise UserError(
            f"{where}.model: {name!r} is a network that is built already ({type(found).__name__}); "
            "name its class, or a function that returns it, so that every student is a new one."
        )
    if not callable(found):
        raise UserError(f"{where}.model: {name!r} is not callable ({type(found).__name__}).")
    return found  # type: ignore[no-any-return]


@contextmanager
def _with_values() -> Iterator[None]:
    """Give tensors that a module creates on import values, even if the default device is meta."""
    if torch.empty(0).device.type != "meta":
        yield
        return
    with torch.device("cpu"):
        yield


def located(error: BaseException) -> str:
    """Return an error as `Type: message (file, line N)`, the line in the user's own code.

    The place is the last one outside of installed packages and krscale. It is omitted if there is
    none.
    """
    message = str(error).strip().splitlines() or [""]
    text = f"{type(error).__name__}: {message[0]}".rstrip(": ")
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _is_users(frame.filename)]
    return f"{text} ({own[-1].filename}, line {own[-1].lineno})" if own else text


def _import_error(name: str, module_name: str, error: BaseException, where: str) -> UserError:
    absent = error.name if isinstance(error, ModuleNotFoundError) else None
    if absent and f"{module_name}.".startswith(f"{absent}."):
        return UserError(
            f"{where}.model: {name!r}: cannot import {module_name!r} ({error}). "
            "It must be importable where krscale runs: installed, or on PYTHONPATH."
        )
    return UserError(
        f"{where}.model: {name!r}: cannot import {module_name!r}: {located(error)}. "
        "The module is there; the mistake is in it, or in what it imports."
    )


def _is_users(filename: str) -> bool:
    """Whether a file belongs neither to an installed package nor to Python or krscale."""
    path = Path(filename)
    if not path.is_absolute() or not path.exists():  # "<frozen importlib>", "<string>"
        return False
    not_users = [
        Path(__file__).parents[1],
        Path(sysconfig.get_paths()["stdlib"]),
        *(Path(folder) for folder in site.getsitepackages()),
    ]
    parts = {"site-packages", "dist-packages"} & set(path.parts)
    return not parts and not any(path.is_relative_to(folder) for folder in not_users)
