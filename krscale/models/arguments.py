"""Which arguments a callable that builds a network gets: what it calls the number of classes, etc.

Networks of other people take the same few numbers under other names. They are found by the
callable's signature, never by position, so that nothing lands in the wrong place.
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
"""What krscale sets, and the names that callables have for it; the first that is there is used.

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

    A callable gets of the number of classes, the channels and the width what it takes, under its
    own names; one that takes any keyword (`**kwargs`) gets all of them.

    Args:
        build: The callable.
        name: As the user wrote it, for errors.
        dial: Values of the keys of `ALIASES`.
        options: The user's own arguments.
        where: The config table of the network, for errors.

    Raises:
        UserError: If an option is unknown or set by krscale, or an argument is missing.
    """
    try:
        parameters = inspect.signature(build).parameters
    except ValueError:  # a callable written in C may have no signature; the call then decides
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
    """Call a builder; one that takes any keyword may hand on what its network does not take.

    Then the number that krscale adds by itself, and that nobody takes, is left out.
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
