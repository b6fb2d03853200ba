"""Forward hooks that are called only for runs in their own thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import get_ident
from typing import Any

import torch
from torch import nn

Hook = Callable[..., Any]
"""A forward hook of torch: it is called with the module, its arguments and its output."""


@dataclass(frozen=True)
class Owner:
    """The thread that owns hooks; an object, as compiled code would recompile for each number."""

    thread: int


def this_thread() -> Owner | None:
    """Return the owner of hooks made in this thread; None while compiling (it is unknown there)."""
    return None if torch.compiler.is_compiling() else Owner(get_ident())


@contextmanager
def hooked(hooks: Iterable[tuple[nn.Module, Hook]]) -> Iterator[None]:
    """Register forward hooks for this thread while the block runs.

    Args:
        hooks: Modules, each with its hook. Hooks of the same module are called in this order.

    Example:
        >>> linear = nn.Linear(1, 1)
        >>> with hooked([(linear, lambda *given: print("called"))]):
        ...     _ = linear(torch.zeros(1))
        called
        >>> _ = linear(torch.zeros(1))
    """
    handles = []
    try:
        for module, hook in hooks:
            handles.append(module.register_forward_hook(in_this_thread(hook)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def in_this_thread(hook: Hook) -> Hook:
    """Return a forward hook that is called only in this thread.

    Plain hooks of a network are called whichever thread runs it. If several students of one teacher
    are trained in separate threads, or a validation runs during training, they would read outputs
    for images of other threads.

    Example:
        >>> linear = torch.nn.Linear(1, 1)
        >>> handle = linear.register_forward_hook(in_this_thread(lambda *given: print("called")))
        >>> _ = linear(torch.zeros(1))
        called
    """
    return partial(call_in, this_thread(), hook)


def call_in(owner: Owner | None, hook: Hook, module: Any, arguments: Any, output: Any) -> Any:
    """Call a hook in the thread of its owner; see `in_this_thread`."""
    if owner is None or torch.compiler.is_compiling() or get_ident() == owner.thread:
        return hook(module, arguments, output)
    return None


def is_compiled(network: nn.Module) -> bool:
    """Return whether a network or a part of it is compiled.

    torch.compile keeps the code of a run without hooks, and uses it for runs with hooks, too.

    Example:
        >>> layer, wrapper = nn.Linear(2, 2), nn.Module()
        >>> wrapper.add_module("_orig_mod", layer)  # as torch.compile returns it
        >>> is_compiled(nn.Sequential(layer)), is_compiled(nn.Sequential(wrapper))
        (False, True)
    """
    return any(
        module._compiled_call_impl is not None  # of `module.compile()`
        or "_orig_mod" in module._modules
        or (
            hasattr(module.forward, "_torchdynamo_orig_callable")
            and not getattr(module.forward, "_torchdynamo_disable", False)
        )
        for module in network.modules()
    )
