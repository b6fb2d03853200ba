"""Names that settings of KR are chosen from, each list written down once.

The config, which knows no torch, allows them; the knowledge, which knows no pydantic, goes by them.
"""

from __future__ import annotations

from typing import Literal, get_args

Level = Literal["network", "stage", "layer"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""Granularities with a name: one group, the architecture's stages, every tap on its own. A network
has the more groups the later its level stands here."""

Mixing = Literal["arithmetic", "geometric"]
MIXINGS: tuple[Mixing, ...] = get_args(Mixing)
"""Means over the taps of a group: of probabilities, or of log-probabilities."""

Alignment = Literal["stage", "depth"]
ALIGNMENTS: tuple[Alignment, ...] = get_args(Alignment)
"""How groups of the teacher's taps meet the student: stage by stage, or by relative depth."""

Schedule = Literal["constant", "rising", "falling"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
"""What a setting does over the training: the value throughout, from 0 up to it, or from it down to
0."""
