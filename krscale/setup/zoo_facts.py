"""Remember what follows from the settings of a network of the zoo, for as long as a process lives.

A command needs the same sizes and shapes several times: to check the experiment and its search
space, to find the widths of the ladder, and for each start that follows in the same process. Each
needs forward passes on meta tensors, which take tens of milliseconds.

The code of the zoo does not change while a process lives. The user's own networks may also depend
on more than their settings, so what follows from these is computed each time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from krscale.config import ModelConfig
from krscale.models import ZOO
from krscale.setup.network_builder import Task

MOST_KEPT = 10_000
"""Number of values after which all are dropped: a long search may try thousands of widths."""

Value = TypeVar("Value")
_kept: dict[tuple[Any, ...], Any] = {}


def remembered(
    what: str, config: ModelConfig, task: Task, width: int, compute: Callable[[], Value]
) -> Value:
    """Return `compute()`; for a network of the zoo, call it once per process.

    Args:
        what: Name of the value, different for each kind of value.
        config: The table of the network, with its options and taps.
        task: The data that the network is built for.
        width: Its capacity dial.
        compute: Computes the value from these alone; the value must not be changed afterwards.
    """
    if config.model not in ZOO:
        return compute()
    builder = ZOO[config.model]
    key = (what, builder, repr(config), task.num_classes, tuple(task.image_shape), width)
    if key not in _kept:
        value = compute()
        if len(_kept) >= MOST_KEPT:
            _kept.clear()
        _kept[key] = value
    return cast(Value, _kept[key])
