"""How large the student of a trial is, and whether a limit forbids it, before anything trains."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from krscale.capacity import latency_ms
from krscale.config import Experiment, with_values
from krscale.errors import UserError
from krscale.files import read_json, write_json
from krscale.rungs import MAX_ROUNDING, Rung, Task, build_student, nearest_rung, rounding


class Sizes(Protocol):
    """What the ladder asks about students."""

    def rung(self, capacity: str, values: Mapping[str, Any]) -> Rung:
        """Return the size of a student with these settings."""

    def excess(self, capacity: str, values: Mapping[str, Any]) -> dict[str, float]:
        """Return by how much (a share of the limit) it is beyond each limit that it breaks."""

    def latency_ms(self, capacity: str, values: Mapping[str, Any]) -> float:
        """Return the milliseconds of one image through an untrained student on one CPU thread."""


class FixedSizes:
    """Every rung as it is, without limits."""

    def __init__(self, rungs: Mapping[str, Rung]) -> None:
        self.rungs = rungs

    def rung(self, capacity: str, values: Mapping[str, Any]) -> Rung:
        """Return the rung."""
        del values
        return self.rungs[capacity]

    def excess(self, capacity: str, values: Mapping[str, Any]) -> dict[str, float]:
        """Return nothing: all are allowed."""
        del capacity, values
        return {}

    def latency_ms(self, capacity: str, values: Mapping[str, Any]) -> float:
        """Nothing is built here, so nothing can be measured."""
        raise NotImplementedError(f"the latency at {capacity} with {values} is not known")


class StudentSizes:
    """Students as the experiment builds them, their architecture varied by a trial.

    A trial that changes the architecture gets the width at which that architecture comes closest
    to its rung's share of the teacher: a rung stays a size, whatever is searched at it. Sizes are
    found on meta tensors; latency is measured on an untrained student, on this machine, once.
    """

    def __init__(self, experiment: Experiment, task: Task) -> None:
        self.experiment, self.task = experiment, task
        self._rungs: dict[str, Rung] = {}
        self._roundings: dict[str, float] = {}
        self._latencies: dict[str, float] = {}
        self._file: Path | None = None

    def keep_latencies(self, path: Path) -> None:
        """Keep what is measured in a file; what it holds of earlier starts is not measured again.

        Measured twice, one student would stand at two places on every axis of latency.
        """
        if path.exists():
            self._latencies |= read_json(path)
        self._file = path
        write_json(path, self._latencies)

    def rung(self, capacity: str, values: Mapping[str, Any]) -> Rung:
        """Return the size of a student with these settings."""
        key, experiment = self._student(capacity, values)
        if key not in self._rungs:
            self._rungs[key] = nearest_rung(experiment, self.task)
            self._roundings[key] = rounding(experiment, self.task, self._rungs[key])
        return self._rungs[key]

    def excess(self, capacity: str, values: Mapping[str, Any]) -> dict[str, float]:
        """Return by how much (a share of the limit) it is beyond each limit that it breaks."""
        limits = self.experiment.search
        rung = self.rung(capacity, values)
        rounded = self._roundings[self._student(capacity, values)[0]]
        found: dict[str, tuple[float, float]] = {
            # A rung stays a size; an architecture may be too thin for so coarse a multiple.
            "student.width_multiple": (rounded, MAX_ROUNDING),
            "search.max_parameters": (rung.num_parameters, limits.max_parameters),
            "search.max_flops": (rung.flops, limits.max_flops),
        }
        if limits.max_latency_ms:
            latency = self.latency_ms(capacity, values)
            found["search.max_latency_ms"] = (latency, limits.max_latency_ms)
        return {
            name: amount / limit - 1.0
            for name, (amount, limit) in found.items()
            if limit and amount > limit
        }

    def allowed(self, rungs: Iterable[Rung], say: Callable[[str], None]) -> tuple[Rung, ...]:
        """Return the rungs that no limit forbids, and say of the others why they are left out.

        Raises:
            UserError: If none is left.
        """
        kept, refused = [], []
        for rung in rungs:
            excess = self.excess(rung.capacity, {})
            if not excess:
                kept.append(rung)
                continue
            for limit, amount in excess.items():
                value = getattr(self.experiment.search, limit.removeprefix("search."))
                refused.append(
                    f"rung {rung.capacity} is left out: {amount:.0%} beyond {limit} = {value:,}"
                )
        if not kept:
            raise UserError("\n".join([*refused, "ladder.capacities: no rung is left to search."]))
        for line in refused:
            say(line)
        return tuple(kept)

    def latency_ms(self, capacity: str, values: Mapping[str, Any]) -> float:
        """Return the milliseconds of one image through an untrained student on one CPU thread."""
        key, experiment = self._student(capacity, values)
        rung = self.rung(capacity, values)
        if rung == self.rung(capacity, {}):
            key = capacity  # the experiment's own student, its settings spelled out
        if key not in self._latencies:
            student = build_student(experiment, self.task, rung.width)
            self._latencies[key] = latency_ms(student, self.task.image_shape)
            if self._file is not None:
                write_json(self._file, self._latencies)
        return self._latencies[key]

    def _student(self, capacity: str, values: Mapping[str, Any]) -> tuple[str, Experiment]:
        own = {path: value for path, value in values.items() if path.startswith("student.")}
        key = f"{capacity} {json.dumps(own, sort_keys=True)}" if own else capacity
        settings = {**own, "distill.capacity": capacity}
        return key, with_values(self.experiment, settings, f"student at {capacity}")
