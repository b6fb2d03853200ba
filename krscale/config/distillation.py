"""The `[distill]` section: the method, and the settings of all methods in one table."""

from __future__ import annotations

from pydantic import field_validator

from krscale.config.fields import Section, is_share, parse_capacity
from krscale.config.methods import (
    ATSettings,
    CRDSettings,
    DISTSettings,
    DKDSettings,
    FitNetSettings,
    KDSettings,
    KRSettings,
    LabelSmoothingSettings,
    LogitStandardisationSettings,
    PKTSettings,
    ReviewKDSettings,
    RKDSettings,
)


class MethodChoice(Section):
    """Which method, and for which student."""

    method: str = "kr"
    """A registered method, or KR combined with methods on the logits: `kr+dkd`, `kr+dist+kd`."""
    capacity: str = "1/16"
    """Size of the student that `krscale distill` trains, as a share of the teacher's parameters; or
    the name of one of `[[ladder.students]]`."""

    @field_validator("capacity")
    @classmethod
    def _share(cls, capacity: str) -> str:
        if is_share(capacity):
            parse_capacity(capacity)
        return capacity


class DistillConfig(
    RKDSettings,
    ReviewKDSettings,
    CRDSettings,
    PKTSettings,
    ATSettings,
    FitNetSettings,
    LogitStandardisationSettings,
    DISTSettings,
    DKDSettings,
    LabelSmoothingSettings,
    KRSettings,
    KDSettings,
    MethodChoice,
):
    """The method, and the settings of all methods (`methods.py`).

    The fields of the last base come first in files and listings.
    """
