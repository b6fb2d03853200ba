"""The names that settings of KR are chosen from, each list defined once.

The config, which does not import torch, validates settings with them; `krscale.knowledge`, which
does not import pydantic, uses them.
"""

from __future__ import annotations

from typing import Literal, get_args

Level = Literal["network", "stage", "layer"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""Granularities with a name: one group, the architecture's stages, every tap on its own. Later
levels divide a network into more groups."""

Mixing = Literal["arithmetic", "geometric"]
MIXINGS: tuple[Mixing, ...] = get_args(Mixing)
"""Means over the taps of a group: of probabilities, or of log-probabilities."""

Alignment = Literal["stage", "depth"]
ALIGNMENTS: tuple[Alignment, ...] = get_args(Alignment)
"""How groups of the teacher's taps are matched to the student: by stage, or by relative depth."""

Schedule = Literal["constant", "rising", "falling"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
"""How a setting changes over the training: constant, from 0 up to its value, or from its value down
to 0."""
