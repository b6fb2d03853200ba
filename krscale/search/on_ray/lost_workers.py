"""Workers whose process is gone: one kind of error for Tune, whatever Ray calls it.

Tune takes an actor's death for its trial's failure only where Ray raises a `RayActorError`. For
what Ray's memory monitor has killed it raises an `OutOfMemoryError`, for a full disk an
`OutOfDiskError`, for a lost owner an `OwnerDiedError`: none of them is one, and each ends Tune with
all its trials.
"""

from __future__ import annotations

from typing import Any

from ray.exceptions import RayActorError, RayTaskError


def end_only_their_trials(actor_manager: Any) -> None:
    """Let Tune's manager of actors treat every error of an actor as the failure of its trial.

    Args:
        actor_manager: Of one Tune controller (`ray.air.execution._internal.RayActorManager`),
            changed in place; a second call changes nothing.
    """
    failed = actor_manager._actor_task_failed
    if hasattr(failed, "of_tune"):
        return

    def task_failed(tracked_actor_task: Any, exception: Exception) -> None:
        failed(tracked_actor_task, as_actor_error(exception))

    task_failed.of_tune = failed  # type: ignore[attr-defined]
    actor_manager._actor_task_failed = task_failed


def as_actor_error(error: Exception) -> RayActorError | RayTaskError:
    """Return an error as Tune can handle it: its own kinds as they are, others by name.

    Example:
        >>> from ray.exceptions import OutOfMemoryError
        >>> print(as_actor_error(OutOfMemoryError("the node is low on memory")))
        OutOfMemoryError: the node is low on memory
    """
    if isinstance(error, RayActorError | RayTaskError):
        return error
    return RayActorError(error_msg=f"{type(error).__name__}: {error}")
