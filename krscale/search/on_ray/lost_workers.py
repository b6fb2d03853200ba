"""Convert the errors of lost workers, which Ray raises in several types, to one type for Tune.

Tune treats an actor's death as the failure of its trial only if Ray raises a `RayActorError`. But
Ray raises an `OutOfMemoryError` if its memory monitor killed the actor, an `OutOfDiskError` if a
disk is full, and an `OwnerDiedError` if the owner is lost. None of these is a `RayActorError`, so
each ends Tune with all its trials. The same happens for an exception of a user's code that cannot
be pickled and read again.
"""

from __future__ import annotations

from typing import Any

from ray.exceptions import RayActorError, RayTaskError, UnserializableException


def end_only_their_trials(actor_manager: Any) -> None:
    """Let Tune's manager of actors treat every error of an actor as the failure of its trial.

    Args:
        actor_manager: The manager of one Tune controller
            (`ray.air.execution._internal.RayActorManager`). It is changed in place; a second call
            changes nothing.
    """
    failed = actor_manager._actor_task_failed
    if hasattr(failed, "of_tune"):
        return

    def task_failed(tracked_actor_task: Any, exception: Exception) -> None:
        failed(tracked_actor_task, as_actor_error(exception))

    task_failed.of_tune = failed  # type: ignore[attr-defined]
    actor_manager._actor_task_failed = task_failed


def as_actor_error(error: Exception) -> RayActorError | RayTaskError:
    """Return an error of a type that Tune can handle; the text names any other type.

    Example:
        >>> from ray.exceptions import OutOfMemoryError
        >>> print(as_actor_error(OutOfMemoryError("the node is low on memory")))
        OutOfMemoryError: the node is low on memory
    """
    if isinstance(error, RayActorError | RayTaskError):
        return error
    if isinstance(error, UnserializableException):  # raised by a worker that is still alive
        return RayTaskError("a trial", str(error), error)  # type: ignore[no-untyped-call]
    return RayActorError(error_msg=f"{type(error).__name__}: {error}")
