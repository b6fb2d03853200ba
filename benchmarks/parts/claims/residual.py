"""C1: how far final students are from the teacher at every depth, traced once they have ended."""

from __future__ import annotations

from collections.abc import Sequence

from krscale.config import Experiment
from krscale.data import find_data
from krscale.runs.folder import student_path
from krscale.setup.network_builder import build_student
from krscale.setup.networks import Networks
from krscale.setup.prepare import prepare
from krscale.setup.sizes import ladder_sizes
from krscale.training.checkpoint import load_weights
from parts.claims.families import KR
from parts.claims.tracing import trace_residual, validation_knowledge


def trace_finals(
    experiment: Experiment, capacity: str, seeds: Sequence[int]
) -> dict[int, list[float]]:
    """Return, by seed, a final student's residual at every relative depth, shallowest first.

    Args:
        experiment: A finished search with the method KR.
        capacity: The size.
        seeds: Of its final trainings.
    """
    prepared = prepare(experiment, _Silent())
    knowledge = validation_knowledge(experiment, prepared)
    dataset = find_data(experiment.data, experiment.cache_path)
    size = next(
        r for r in ladder_sizes(Networks.resolve(experiment, dataset)) if r.capacity == capacity
    )
    traced = {}
    for seed in seeds:
        student = build_student(experiment, dataset, size.width)
        path = student_path(experiment.run_path, KR, capacity, seed)
        load_weights(path, student, where=str(path))
        residual = trace_residual(experiment, prepared, student, knowledge)
        traced[seed] = [residual[depth] for depth in sorted(residual)]
    return traced


class _Silent:
    def phase(self, title: str) -> None:
        pass

    def advance(self, done: int, total: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass
