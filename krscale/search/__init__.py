"""The search over a ladder of student sizes; and `krscale.search(...)`, which runs one.

The function has the same name as this package, and Python replaces the function by the package once
any module of it is imported. So the package itself is callable, and `krscale.search` is the package
from the start.
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """This package as a callable; a call runs `krscale.search.calling.search`."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return _function()(*arguments, **keywords)

    @property
    def __wrapped__(self) -> Callable[..., Any]:  # where tools look for signature and docstring
        return _function()


def _function() -> Callable[..., Any]:
    from krscale.extras import missing_extra

    try:
        from krscale.search.calling import search
    except ModuleNotFoundError as error:
        raise missing_extra(error) or error from None
    return search


sys.modules[__name__].__class__ = _Callable
