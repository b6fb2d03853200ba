"""Forward hooks that are called for what one thread runs, and for nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import get_ident
from typing import Any

import torch

Hook = Callable[..., Any]
"""A forward hook of torch: it is called with the module, its arguments and its output."""


def in_this_thread(hook: Hook) -> Hook:
    """Return a forward hook that is called in this thread alone.

    A network has its hooks whoever runs it. Several students of one teacher, each trained in a
    thread of its own, or a validation beside the training, would read what others' images give.

    Example:
        >>> linear = torch.nn.Linear(1, 1)
        >>> handle = linear.register_forward_hook(in_this_thread(lambda *given: print("called")))
        >>> _ = linear(torch.zeros(1))
        called
    """
    # A compiler can neither ask for the thread nor keep apart what it has traced in one.
    owner = None if torch.compiler.is_compiling() else get_ident()
    return partial(_call, owner, hook)


def _call(owner: int | None, hook: Hook, module: Any, arguments: Any, output: Any) -> Any:
    if owner is None or torch.compiler.is_compiling() or get_ident() == owner:
        return hook(module, arguments, output)
    return None
