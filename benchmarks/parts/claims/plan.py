"""`make claims ARGS=--dry-run`: what would run, in which order, and what it would cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from parts.claims.cost import (
    Cost,
    StepSeconds,
    family_cost,
    followers_cost,
    teacher_seconds,
    training_seconds,
)
from parts.claims.families import ABLATIONS, FAMILIES, KR
from parts.claims.order import planned
from parts.claims.tasks import TaskRun

_KR_FAMILY = next(family for family in FAMILIES if family.name == KR)


def plan(runs: Sequence[TaskRun], names: Sequence[str] = ()) -> Iterator[str]:
    """Yield the lines of the plan: each task, and then the searches in their order.

    Args:
        runs: The tasks whose data is here.
        names: Families to take; all of them if empty.
    """
    costs: dict[tuple[str, str], Cost] = {}
    hours = 0.0
    for run in runs:
        families = [f for f in run.families if not names or f.name in names]
        experiment = run.experiment(_KR_FAMILY)
        wanted = dict.fromkeys((KR, *(m for family in families for m in family.methods)))
        seconds = training_seconds(experiment, wanted)
        teacher = teacher_seconds(experiment)
        parts = followers_cost(1 + len(ABLATIONS), experiment, seconds[KR])
        hours += (teacher + parts) / 3600
        yield from _of_task(run, seconds, teacher, parts)
        for family in families:
            costs[run.task.name, family.name] = family_cost(family, run.experiment(family), seconds)
    yield "In this order; CPU hours of a search, and of all up to it (teachers and parts first):"
    for search in planned(runs, names):
        cost = costs[search.run.task.name, search.family.name]
        hours += cost.seconds / 3600
        kept = "; finished" if search.is_kept else ""
        yield (
            f"  {search.title}: {cost.num_trials} trials and {cost.num_finals} final trainings, "
            f"{cost.seconds / 3600:.2f} h, {hours:.1f} h{kept}"
        )
    yield f"together: {hours:.1f} CPU hours; divide by the cores"


def _of_task(run: TaskRun, seconds: StepSeconds, teacher: float, parts: float) -> Iterator[str]:
    yield f"{run.task.title}: {run.num_searches} searches of a family at most"
    if run.data_path:
        yield (
            f"  images: {run.data_path}; records of finished searches do not say which images they "
            "are of, so that these are taken to be the same"
        )
    yield f"  teacher: {teacher:.0f} CPU seconds; C1 and KR without each part: {parts:.0f}"
    for method, by_size in seconds.items():
        each = ", ".join(f"{found:.1f}" for found in by_size)
        yield f"  {method}: one training at each size, smallest first: {each} CPU seconds"
    yield ""
