"""Find the arguments for a callable that builds a network, such as its name for `num_classes`.

The user's networks take the same few numbers under other names. The names are found in the
callable's signature, and arguments are never passed by position, so that none can be mixed up.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from krscale.errors import UserError, nearest, unknown_name

ALIASES: dict[str, tuple[str, ...]] = {
    "num_classes": (
        "num_classes", "n_classes", "nclasses", "nb_classes", "num_class", "n_class", "num_labels",
        "n_labels", "classes", "class_num", "num_outputs", "n_outputs", "out_features",
        "output_dim",
    ),
    "in_channels": (
        "in_channels", "in_chans", "input_channels", "in_ch", "in_chan", "img_channels",
        "num_input_channels",
    ),
    "width": ("width",),
}  # fmt: skip
"""Arguments that krscale sets, with the names that callables use; the first match is used.

`channels` and `num_channels` are not among them: they often mean the width of a layer.
"""


def arguments_for(
    build: Callable[..., Any],
    name: str,
    dial: Mapping[str, int],
    options: Mapping[str, Any],
    where: str,
) -> dict[str, Any]:
    """Return the keyword arguments to build a network with, checked before anything runs.

    Of the number of classes, the channels and the width, a callable gets those that it takes, under
    its own names; a callable that takes any keyword (`**kwargs`) gets all of them.

    Args:
        build: The callable.
        name: Name as the user wrote it, for error messages.
        dial: Values of the keys of `ALIASES`.
        options: The user's own arguments.
        where: The config table of the network, for error messages.

    Raises:
        UserError: If an option is unknown or set by krscale, or an argument is missing.
    """
    try:
        parameters = inspect.signature(build).parameters
    except ValueError:  # callables written in C may have no signature
        return {**dial, **options}
    kinds = {parameter.kind for parameter in parameters.values()}
    takes_any = inspect.Parameter.VAR_KEYWORD in kinds
    names = {
        p.name for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    given: dict[str, Any] = {}
    for canonical, value in dial.items():
        found = next((alias for alias in ALIASES[canonical] if alias in names), None)
        if found or takes_any:
            given[found or canonical] = value
    _check_options(name, options, given, names, takes_any, where)
    arguments = {**given, **options}
    missing = [
        p.name
        for p in parameters.values()
        if p.default is p.empty
        and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        and (p.name not in arguments or p.kind is p.POSITIONAL_ONLY)
    ]
    if missing:
        raise _missing(name, missing, where)
    return arguments


def call_with(build: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call a builder; retry if it passes on a number that its network does not take.

    A builder that takes any keyword may do this. The number that krscale added is then left out.
    """
    try:
        return build(**arguments)
    except TypeError as error:
        found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        extra = found.group(1) if found else ""
        if extra not in ALIASES or extra in inspect.signature(build).parameters:
            raise
    return call_with(build, {k: v for k, v in arguments.items() if k != extra})


def _check_options(
    name: str,
    options: Mapping[str, Any],
    given: Mapping[str, Any],
    names: set[str],
    takes_any: bool,
    where: str,
) -> None:
    for option in options:
        if option in given or option in ALIASES:
            raise UserError(
                f"{where}.options: {option!r} is set by krscale itself "
                f"({', '.join(ALIASES)}) and cannot be an option."
            )
        if not takes_any and option not in names:
            raise _unknown_option(name, option, sorted(names - given.keys()), where)


def _missing(name: str, missing: list[str], where: str) -> UserError:
    listed = ", ".join(map(repr, missing))
    return UserError(
        f"{where}.model: {name} needs {listed}, which krscale does not know how to fill. It passes "
        f"the number of classes as one of {', '.join(ALIASES['num_classes'][:7])}, ...; the "
        f"channels as one of {', '.join(ALIASES['in_channels'][:4])}, ...; and width. Name the "
        f"argument so, or give its value: {where}.options = {{ {missing[0]} = ... }}."
    )


def _unknown_option(name: str, option: str, allowed: list[str], where: str) -> UserError:
    if allowed:
        return unknown_name(f"option of {name}", option, allowed, f"{where}.options")
    guess = nearest(option, ALIASES)
    hint = f" Did you mean {where}.{guess}?" if guess else ""
    return UserError(f"{where}.options: unknown option {option!r}.{hint} {name} takes none.")
