"""Which errors are a trial's own fault, told by what Ray hands over."""

import pytest
import torch
from ray.exceptions import (
    ActorDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)

from krscale.errors import NonFiniteError
from krscale.search.on_ray.trial_error import TrialError
from krscale.search.studies.retries import Cause

TRACEBACK = """Failure # 1 (occurred at 2026-11-24_10-00-00)
ray::StudentTrial.train() (pid=7)
  File "trial.py", line 3, in step
    self.training.run_epoch()
"""


# Ray's own words after a SIGKILL from whomever, shortened.
KILLED = """The actor died unexpectedly before finishing this task.
	class_name: with_resources.<locals>.ResourceTrainable
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit \
detail: Worker unexpectedly exits with a connection error code 2. End of file. Some common causes \
include: (1) the process was killed by the OOM killer due to high memory usage, (2) ray stop \
--force was called, or (3) the worker crashed unexpectedly due to SIGSEGV or another unexpected \
error. If the process was killed by the kernel OOM killer (verifiable by checking for OOM in dmesg \
of the OOMing node), consider enabling resource isolation via --enable-resource-isolation."""


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("train", f"{TRACEBACK}{type(cause).__name__}: {cause}", cause)


def judge(error: RayError) -> Cause | None:
    return TrialError.of(error, f"Failure # 1 (occurred at now)\n{error}\n").cause


@pytest.mark.parametrize(
    "error",
    [
        task_error(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.")),
        task_error(MemoryError("Unable to allocate 3 GiB for an array")),
        task_error(RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't")),
        OutOfMemoryError("Task was killed due to the node running low on memory."),
    ],
)
def test_memory(error: RayError) -> None:
    assert judge(error) is Cause.MEMORY


@pytest.mark.parametrize(
    "error", [ActorDiedError(), RayActorError(), NodeDiedError("node 3 is gone")]
)
def test_a_lost_worker(error: RayError) -> None:
    assert judge(error) is Cause.WORKER


def test_a_killed_worker_is_lost_whatever_ray_thinks_may_have_killed_it() -> None:
    text = f"Failure # 1 (occurred at 2026-11-25_05-40-44)\n{KILLED}\n"
    assert TrialError.of(ActorDiedError(), text).cause is Cause.WORKER


@pytest.mark.parametrize(
    "error",
    [
        task_error(NonFiniteError("loss term 'ce' is not finite in epoch 1")),
        task_error(ValueError("no memory of this name")),
        # A user's mistake in the first trial of an actor arrives as the actor's death.
        ActorDiedError(task_error(TypeError("model() takes no argument 'width'"))),
    ],
)
def test_what_would_only_happen_again(error: RayError) -> None:
    assert judge(error) is None


def test_the_last_line_names_the_exception() -> None:
    error = task_error(NonFiniteError("loss term 'ce' is not finite"))
    found = TrialError.of(error, str(error))
    assert found.last_line == "NonFiniteError: loss term 'ce' is not finite"
    assert "run_epoch" in found.text
