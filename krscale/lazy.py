"""Names of a package that are imported when they are first used (PEP 562).

`python -m krscale.report` imports the package `krscale.report` before it runs the command. If the
package imported all that it exports, even `--help` would wait for torch, matplotlib and plotly.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence


def lazily(package: str, names: Mapping[str, Sequence[str]]) -> Callable[[str], object]:
    """Return a package's `__getattr__`, which imports a name's module when the name is first used.

    Args:
        package: The package, `__name__` of the caller.
        names: Module of the package -> the names that the package exports from it.

    Returns:
        A function from a name to its value; it raises `AttributeError` for other names.

    >>> offered = lazily("krscale.report", {"choice": ["Limits"]})
    >>> offered("Limits").__module__
    'krscale.report.choice'
    >>> offered("Limit")
    Traceback (most recent call last):
    AttributeError: module 'krscale.report' has no attribute 'Limit'
    """
    places = {name: module for module, offered in names.items() for name in offered}

    def find(name: str) -> object:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{places[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return find
