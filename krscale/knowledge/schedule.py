"""Schedules: a setting that changes from epoch to epoch."""

from __future__ import annotations

from krscale.errors import unknown_name

SCHEDULES = ("constant", "rising", "falling")
"""The value throughout, from 0 up to it, or from it down to 0."""


def scheduled(value: float, schedule: str, progress: float) -> float:
    """Return a setting's value at a point of the training; it changes linearly.

    Args:
        value: The setting, and the largest value it takes.
        schedule: One of `SCHEDULES`.
        progress: 0 in the first epoch, 1 in the last.

    Raises:
        UserError: If the schedule is unknown.
    """
    if schedule not in SCHEDULES:
        raise unknown_name("schedule", schedule, SCHEDULES)
    share = {"constant": 1.0, "rising": progress, "falling": 1.0 - progress}[schedule]
    return value * share
