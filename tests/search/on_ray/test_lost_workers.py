"""Tune's own manager of actors, given the errors that Ray raises for lost workers."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.air.execution._internal.tracked_actor import TrackedActor
from ray.air.execution._internal.tracked_actor_task import TrackedActorTask
from ray.exceptions import OutOfDiskError, OutOfMemoryError, OwnerDiedError, RayActorError

from krscale.search.on_ray.lost_workers import end_only_their_trials

GONE = (
    OutOfMemoryError("the node is low on memory"),
    OutOfDiskError("the node's disk is full"),
    OwnerDiedError("0a", None, ""),
)


def failing_task(told: list[Exception]) -> tuple[Any, TrackedActorTask]:
    """Return a manager with one actor, and a task of that actor which is about to fail."""
    freed = SimpleNamespace(free_resources=lambda acquired_resource: None)
    manager: Any = RayActorManager(cast(Any, freed))
    actor = TrackedActor(7, on_error=lambda _, error: told.append(error))
    manager._live_actors_to_ray_actors_resources[actor] = (None, None)
    return manager, TrackedActorTask(actor, on_error=lambda _, error: told.append(error))


@pytest.mark.parametrize("error", GONE, ids=lambda error: type(error).__name__)
def test_a_worker_that_is_gone_ends_its_trial_and_not_the_search(error: Exception) -> None:
    """Fails without `end_only_their_trials`, as the last lines show."""
    told: list[Exception] = []
    manager, task = failing_task(told)
    end_only_their_trials(manager)
    end_only_their_trials(manager)  # the next trial calls it again
    manager._actor_task_failed(tracked_actor_task=task, exception=error)
    assert [type(found) for found in told] == [RayActorError] * 2, "the actor's end, the task's"
    assert type(error).__name__ in str(told[0])
    untaught, task = failing_task([])
    with pytest.raises(RuntimeError, match="unexpected exception"):
        untaught._actor_task_failed(tracked_actor_task=task, exception=error)
