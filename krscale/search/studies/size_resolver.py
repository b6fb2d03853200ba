"""Compute the size of a trial's student, and whether a limit forbids it, before anything trains."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from krscale.config import Experiment, read_record, with_values
from krscale.errors import UserError
from krscale.files import damaged, write_json
from krscale.models import ZOO
from krscale.models.capacity import latency_ms
from krscale.models.preprocessing import input_shape
from krscale.setup.networks import Networks
from krscale.setup.sizes import MAX_ROUNDING, StudentSize, nearest_size, rounding

LATENCY_FILE = "latency.json"
"""File of a run with the latencies of its students."""


class SizeResolver(Protocol):
    """Interface through which the ladder gets the sizes of students."""

    def size(self, capacity: str, values: Mapping[str, Any]) -> StudentSize:
        """Return the size of a student with these settings."""

    def excess(self, capacity: str, values: Mapping[str, Any]) -> dict[str, float]:
        """Return how far the student exceeds each broken limit, as a share of the limit."""

    def latency_ms(self, capacity: str, values: Mapping[str, Any]) -> float:
        """Return the milliseconds for one image in an untrained student on one CPU thread."""


class FixedSizeResolver:
    """Resolver that returns every size unchanged, without limits."""

    def __init__(self, sizes: Mapping[str, StudentSize]) -> None:
        self.sizes = sizes

    def size(self, capacity: str, values: Mapping[str, Any]) -> StudentSize:
        """Return the size."""
        del values
        return self.sizes[capacity]

    def excess(self, capacity: str, values: Mapping[str, Any]) -> dict[str, float]:
        """Return an empty mapping: every student is allowed."""
        del capacity, values
        return {}

    def latency_ms(self, capacity: str, values: Mapping[str, Any]) -> float:
        """Raise an error: no student is built here, so nothing can be measured."""
        raise NotImplementedError(f"the latency at {capacity} with {values} is not known")


class StudentSizeResolver:
    """Resolver for students as the experiment builds them, with architectures that trials vary.

    A trial that changes the architecture gets the width at which that architecture comes closest to
    the size's share of the teacher, so a size keeps its meaning for every architecture. Sizes are
    computed on meta tensors. Latency is measured once, on an untrained student on this machine.
    """

    def __init__(self, networks: Networks) -> None:
        self.experiment, self.networks = networks.experiment, networks
        self._sizes: dict[str, StudentSize] = {}
        self._roundings: dict[str, float] = {}
        self._latencies: dict[str, float] = {}
        self._file: Path | None = None

    def keep_latencies(self, path: Path) -> None:
        """Keep measured latencies in a file; those of earlier starts are not measured again.

        Two measurements of one student would put it at two places on every axis of latency.
        """
        self.recall_latencies(path)
        self._file = path
        write_json(path, self._latencies)

    def recall_latencies(self, path: Path) -> None:
        """Use the latencies that `keep_latencies` has kept in a file, if there is one.

        Raises:
            DamagedFileError: If it holds anything else.
        """
        if not path.exists():
            return
        rebuild = "Delete it: latencies are measured again, and may differ from the first ones."
        kept = read_record(path, dict[str, float], rebuild)
        for key, latency in kept.items():
            if not 0.0 < latency < math.inf:
                raise damaged(path, f"{key}: no latency (got {latency})", rebuild)
        self._latencies |= kept

    def size(self, capacity: str, values: Mapping[str, Any]) -> StudentSize:
        """Return the size of a student with these settings."""
        key, networks = self._student(capacity, values)
        if key not in self._sizes:
            self._sizes[key] = nearest_size(networks)
            self._roundings[key] = rounding(networks, self._sizes[key])
        return self._sizes[key]

    def excess(self, capacity: str, values: Mapping[str, Any]) -> dict[str, float]:
        """Return how far the student exceeds each broken limit, as a share of the limit."""
        limits = self.experiment.search
        size = self.size(capacity, values)
        rounded = self._roundings[self._student(capacity, values)[0]]
        found: dict[str, tuple[float, float]] = {
            # Some architectures are too thin to reach their size with so coarse a multiple.
            "student.width_multiple": (rounded, MAX_ROUNDING),
            "search.max_parameters": (size.num_parameters, limits.max_parameters),
            "search.max_flops": (size.flops, limits.max_flops),
        }
        if limits.max_latency_ms:
            latency = self.latency_ms(capacity, values)
            found["search.max_latency_ms"] = (latency, limits.max_latency_ms)
        return {
            name: amount / limit - 1.0
            for name, (amount, limit) in found.items()
            if limit and amount > limit
        }

    def allowed(
        self, sizes: Iterable[StudentSize], say: Callable[[str], None]
    ) -> tuple[StudentSize, ...]:
        """Return the sizes that no limit forbids, and print why the others are left out.

        Raises:
            UserError: If none is left.
        """
        kept, refused = [], []
        for size in sizes:
            excess = self.excess(size.capacity, {})
            if not excess:
                kept.append(size)
                continue
            for limit, amount in excess.items():
                value = getattr(self.experiment.search, limit.removeprefix("search."))
                refused.append(
                    f"size {size.capacity} is left out: {amount:.0%} beyond {limit} = {value:,}"
                )
        if not kept:
            raise UserError("\n".join([*refused, "ladder.capacities: no size is left to search."]))
        for line in refused:
            say(line)
        return tuple(kept)

    def latency_ms(self, capacity: str, values: Mapping[str, Any]) -> float:
        """Return the milliseconds for one image in an untrained student on one CPU thread."""
        key, networks = self._student(capacity, values)
        size = self.size(capacity, values)
        if size == self.size(capacity, {}) and same_student(self.experiment, values):
            key = capacity  # the experiment's own student, with explicit settings
        if key not in self._latencies:
            student = networks.build_student(size.width)
            self._latencies[key] = latency_ms(student, input_shape(student, networks.image_shape))
            if self._file is not None:
                write_json(self._file, self._latencies)
        return self._latencies[key]

    def _student(self, capacity: str, values: Mapping[str, Any]) -> tuple[str, Networks]:
        own = {path: value for path, value in values.items() if path.startswith("student.")}
        key = f"{capacity} {json.dumps(own, sort_keys=True)}" if own else capacity
        settings = {**own, "distill.capacity": capacity}
        return key, self.networks.with_values(settings, f"student at {capacity}")


def same_student(experiment: Experiment, values: Mapping[str, Any]) -> bool:
    """Return whether a trial's student is the experiment's own, given that both have one size.

    A network of the zoo is: only its defaults are written out. A network of another origin may
    differ in what no size shows, such as its activations.

    Args:
        experiment: The experiment of the search.
        values: The trial's values by dotted path.

    Example:
        >>> same_student(Experiment(), {"student.options.num_stages": 3})
        True
        >>> own = {"model": "my_models:Net", "options": {"activation": "relu"}}
        >>> other = {"student.options.activation": "gelu"}
        >>> same_student(Experiment.model_validate({"student": own}), other)
        False
        >>> half = {"student.preprocessing.normalisation": "half"}  # the network stays the same
        >>> same_student(Experiment.model_validate({"student": own}), half)
        True
    """
    varied = {path: value for path, value in values.items() if path.startswith("student.")}
    if not varied:
        return True
    own, tried = experiment.student, with_values(experiment, varied, "student").student
    # Both have one size. Pixels are prepared before the network, so no other field counts.
    return tried.model == own.model and (own.model in ZOO or tried.options == own.options)
