"""The students of a curve: the result of each method at each size. Parts of `curve.json`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from krscale.config.records import Accuracy, Count, NotNegative

Milliseconds = NotNegative

_RENAMED = {"rungs": "sizes", "trials_per_rung": "trials_per_size"}
"""Former names of fields, and of settings that occur as values, in older versions of krscale."""


def rounded_mean(mean: float) -> float:
    """Return a mean accuracy without floating-point errors in its last digits.

    Three seeds with an accuracy of 0.7 must have a mean of 0.7, so that equally good results
    compare as equal. An accuracy is a count over at most millions of images, so no true difference
    is as small as the rounding.

    Example:
        >>> mean = (0.7 + 0.7 + 0.7) / 3
        >>> mean == 0.7, rounded_mean(mean) == 0.7
        (False, True)
    """
    return round(mean, 12)


def is_within(accuracy: float, best: float, distance: float) -> bool:
    """Return whether an accuracy is at most `distance` below the best, in decimal arithmetic.

    One image of 200 is half a point, so differences of exactly that are common; floating-point
    errors in the last digits must not decide.

    Args:
        accuracy: A share.
        best: A share.
        distance: Maximum difference of the shares, inclusive.

    Example:
        >>> 0.12 >= 0.13 - 0.01, is_within(0.12, 0.13, 0.01), is_within(0.119, 0.13, 0.01)
        (False, True, False)
    """
    return rounded_mean(best - accuracy) <= distance


class Part(BaseModel):
    """A part of `curve.json`; immutable, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _with_new_names(cls, content: Any) -> Any:
        """Accept the former names of fields in curves of older versions."""
        if not isinstance(content, dict):
            return content
        return {_RENAMED.get(name, name): value for name, value in content.items()}


class Size(Part):
    """The size of a student."""

    width: Count
    """Its capacity dial."""
    num_parameters: Count
    """Parameters of the student alone."""
    flops: Count
    """Operations of one forward pass of one image, two per multiply-add."""
    latency_ms: Milliseconds
    """Median milliseconds of one forward pass of one image on one CPU thread."""


class FrontTrial(Part):
    """A trial that no other trial of its study beats in all objectives."""

    number: Count
    """Its number in the study."""
    objectives: dict[str, float]
    """Its values, by objective; trained once, with the search's seed."""
    settings: dict[str, Any]
    """Dotted path of the experiment -> value."""


class MethodResult(Part):
    """The result of one method at one size: its winner, trained again with fresh seeds."""

    test_accuracy: Accuracy | None
    """Mean over the seeds; None if no trial of the method finished at this size."""
    test_accuracies: tuple[Accuracy, ...]
    """One per seed."""
    val_accuracy: Accuracy | None
    """Mean over the seeds."""
    val_accuracies: tuple[Accuracy, ...]
    """One per seed."""
    seeds: tuple[int, ...]
    """Seeds of the final trainings, in the order of the accuracies."""
    num_trials: Count
    """Number of trials of the search, in any state."""
    num_pruned: Count
    """Trials that early stopping ended."""
    num_failed: Count
    """Trials that ended in an error or a NaN."""
    best: dict[str, Any]
    """Settings of the winner: dotted path of the experiment -> value."""
    size: Size | None = None
    """The winner's own size if the architecture was searched; None if it is that of the ladder."""
    ended_by: str | None = None
    """The field of `search` that ended its tuning, e.g. `max_epochs`; `size_limits` if nearly every
    suggestion was too large; None in curves of older versions, which did not record it."""
    front: tuple[FrontTrial, ...] = ()
    """The front of a search with several objectives, most accurate first: the winner."""

    @field_validator("test_accuracy", "val_accuracy")
    @classmethod
    def _rounded(cls, mean: float | None) -> float | None:
        """Round the means in curves of older versions of krscale, which did not."""
        return None if mean is None else rounded_mean(mean)

    @field_validator("ended_by")
    @classmethod
    def _new_name(cls, ended_by: str | None) -> str | None:
        return _RENAMED.get(ended_by, ended_by) if ended_by else ended_by

    @classmethod
    def over_seeds(
        cls,
        *,
        seeds: Sequence[int],
        val_accuracies: Sequence[float],
        test_accuracies: Sequence[float],
        num_trials: int,
        num_pruned: int,
        num_failed: int,
        best: dict[str, Any],
        size: Size | None = None,
        ended_by: str | None = None,
        front: Sequence[FrontTrial] = (),
    ) -> MethodResult:
        """Build the result from one accuracy per seed, computing the means."""
        return cls(
            test_accuracy=_mean(test_accuracies),
            test_accuracies=tuple(test_accuracies),
            val_accuracy=_mean(val_accuracies),
            val_accuracies=tuple(val_accuracies),
            seeds=tuple(seeds),
            num_trials=num_trials,
            num_pruned=num_pruned,
            num_failed=num_failed,
            best=best,
            size=size,
            ended_by=ended_by,
            front=tuple(front),
        )

    @model_validator(mode="after")
    def _consistent(self) -> MethodResult:
        lengths = {len(self.seeds), len(self.val_accuracies), len(self.test_accuracies)}
        if len(lengths) != 1:
            raise ValueError("one val and one test accuracy per seed are needed")
        for mean, values in (
            (self.test_accuracy, self.test_accuracies),
            (self.val_accuracy, self.val_accuracies),
        ):
            expected = _mean(values)
            if (mean is None) != (expected is None):
                raise ValueError("a mean without values, or values without a mean")
            if mean is not None and expected is not None and abs(mean - expected) > 1e-6:
                raise ValueError(f"{mean} is not the mean of {list(values)}")
        return self


class CurveSize(Part):
    """One student size."""

    capacity: str
    """Requested share of the teacher's parameters, e.g. `"1/16"`."""
    width: Count
    """The student's capacity dial."""
    num_parameters: Count
    """Parameters of the student alone."""
    flops: Count
    """Operations of one forward pass of one image, two per multiply-add."""
    latency_ms: Milliseconds
    """Median milliseconds of one forward pass of one image on one CPU thread."""
    methods: dict[str, MethodResult]
    """Result by method name."""

    def size_of(self, method: str) -> Size:
        """Return the size of a method's winner: its own if it has one, else that of the ladder."""
        return self.methods[method].size or self._configured

    def by_student(self) -> list[tuple[Size, tuple[str, ...]]]:
        """Return the sizes of its finished students, smallest first, with the methods of each.

        This is a single size unless the architecture was searched. Without a finished student, it
        is the size of the ladder without methods.
        """
        found: dict[Size, list[str]] = {}
        for method, result in self.methods.items():
            if result.test_accuracy is not None:
                found.setdefault(self.size_of(method), []).append(method)
        ordered = sorted(found, key=lambda own: (own.num_parameters, own.flops, own.latency_ms))
        return [(own, tuple(found[own])) for own in ordered] or [(self._configured, ())]

    @property
    def _configured(self) -> Size:
        return Size.model_validate(self.model_dump(include=set(Size.model_fields)))


def _mean(values: Sequence[float]) -> float | None:
    return rounded_mean(math.fsum(values) / len(values)) if values else None
