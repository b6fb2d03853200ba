"""Teacher, student, the ladder of student sizes, and what the teacher knows on disk."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from krscale.config.fields import Count, Positive, Section, StrictInt, Weight, parse_capacity


class ModelConfig(Section):
    """A network: a name of the zoo or `package.module:callable`, and its arguments."""

    model: str = "resnet"
    """A zoo name, or `package.module:callable` taking (num_classes, in_channels, width)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further keyword arguments of the model, e.g. `{num_blocks = 2}`."""
    taps: tuple[str, ...] = ()
    """Module paths whose outputs are taps, in depth order; empty takes the model's own."""


class TeacherConfig(ModelConfig):
    """The teacher: loaded from `weights`, or trained once and kept."""

    options: dict[str, Any] = Field(default_factory=lambda: {"num_blocks": 2})
    """Further keyword arguments of the model, e.g. `{num_blocks = 2}`."""
    width: Count = 32
    """The capacity dial of the teacher."""
    weights: str = ""
    """A state dict (`.safetensors`, or `.pt` without code); empty trains the teacher here."""
    num_epochs: Count = 30
    """Epochs of the teacher's own training."""
    learning_rate: Positive = 0.1
    """Peak learning rate of the teacher's own training (SGD, cosine)."""
    weight_decay: Weight = 5e-4
    """Weight decay of the teacher's own training."""
    seed: StrictInt = 0
    """Seed of the teacher's initialisation and sample order."""


class StudentConfig(ModelConfig):
    """The student's architecture; its size is a size of the ladder."""

    options: dict[str, Any] = Field(default_factory=lambda: {"num_blocks": 1})
    """Further keyword arguments of the model, e.g. `{num_blocks = 1}`."""
    width_multiple: Count = 1
    """Widths of students are multiples of this. Processors compute channels in blocks (16 of them
    with AVX-512, commonly 8 elsewhere), and a network one channel wider than a block can
    take twice the time."""


class StoreConfig(Section):
    """The teacher's knowledge on disk."""

    temperature: Positive = 4.0
    """Temperature at which probabilities are stored; others are derived from it."""
    top_k: Annotated[int, Field(strict=True, ge=0)] = 0
    """Classes kept per tap and view, the mass of all others spread evenly; where all classes take
    no more room, all are kept. 0 chooses what takes least room and meets `max_error`: the top k,
    or all classes rounded to a few bits; up to 12 classes are kept exactly."""
    max_error: Annotated[float, Field(gt=0.0, le=1.0)] = 0.08
    """Largest mean total variation that this may cost any tap, when `top_k` is 0."""
    shard_rows: Count = 8192
    """Samples in one shard file."""


class LadderConfig(Section):
    """The ladder of student capacities."""

    capacities: tuple[str, ...] = ("1/256", "1/64", "1/16", "1/4")
    """Student sizes as shares of the teacher's parameters, e.g. `"1/16"` or `"0.05"`."""

    @field_validator("capacities")
    @classmethod
    def _shares(cls, capacities: tuple[str, ...]) -> tuple[str, ...]:
        if not capacities:
            raise ValueError("at least one capacity is needed")
        if len({parse_capacity(c) for c in capacities}) != len(capacities):
            raise ValueError(f"a capacity appears twice in {list(capacities)}")
        return capacities
