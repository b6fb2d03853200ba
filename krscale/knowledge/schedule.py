"""Schedules: settings that change from epoch to epoch."""

from __future__ import annotations

from krscale.choices import SCHEDULES
from krscale.errors import unknown_name


def share_left(progress: float, until: float) -> float:
    """Return the value of a factor that falls linearly from 1 to 0 and then stays at 0.

    Args:
        progress: 0 in the first epoch, 1 in the last.
        until: Progress at which it reaches 0, more than 0.

    Example:
        >>> [share_left(progress, 0.5) for progress in (0.0, 0.25, 0.5, 1.0)]
        [1.0, 0.5, 0.0, 0.0]
    """
    return max(0.0, 1.0 - progress / until)


def scheduled(value: float, schedule: str, progress: float) -> float:
    """Return the value of a setting at a point of the training; it changes linearly.

    Args:
        value: The setting, which is the largest value it takes.
        schedule: One of `SCHEDULES`.
        progress: 0 in the first epoch, 1 in the last.

    Raises:
        UserError: If the schedule is unknown.

    Example:
        >>> {name: scheduled(0.5, name, progress=0.25) for name in SCHEDULES}
        {'constant': 0.5, 'rising': 0.125, 'falling': 0.375}
    """
    if schedule not in SCHEDULES:
        raise unknown_name("schedule", schedule, SCHEDULES)
    share = {"constant": 1.0, "rising": progress, "falling": 1.0 - progress}[schedule]
    return value * share
