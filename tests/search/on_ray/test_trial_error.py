"""Which errors are a trial's own fault, judged by what Ray raises."""

import errno
import os
from pathlib import Path

import pytest
import torch
from ray.exceptions import (
    ActorDiedError,
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    OwnerDiedError,
    RayActorError,
    RayError,
    RayTaskError,
    UnserializableException,
    WorkerCrashedError,
)

from krscale.errors import NonFiniteError
from krscale.search.on_ray import whose_storage
from krscale.search.on_ray.lost_workers import as_actor_error
from krscale.search.on_ray.trial_error import TrialError
from krscale.search.studies.retries import Cause
from krscale.training import checkpoint

STORAGE = Path("/runs")
TRACEBACK = """Failure # 1 (occurred at 2026-11-24_10-00-00)
ray::StudentTrial.train() (pid=7)
  File "trial.py", line 3, in step
    self.training.run_epoch()
"""


# Ray's message after any SIGKILL, shortened.
KILLED = """The actor died unexpectedly before finishing this task.
	class_name: with_resources.<locals>.ResourceTrainable
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit \
detail: Worker unexpectedly exits with a connection error code 2. End of file. Some common causes \
include: (1) the process was killed by the OOM killer due to high memory usage, (2) ray stop \
--force was called, or (3) the worker crashed unexpectedly due to SIGSEGV or another unexpected \
error. If the process was killed by the kernel OOM killer (verifiable by checking for OOM in dmesg \
of the OOMing node), consider enabling resource isolation via --enable-resource-isolation."""


# Ray's message after its memory monitor killed a worker, shortened.
OUT_OF_MEMORY = """1 worker(s) were killed due to the node running low on memory. Memory on the \
node (IP: 192.0.2.2, ID: 12b4374d97db) was 8.98GB used / 23.54GB limit (0.381547)
OOM kill reason: Memory usage 9481113600B exceeded threshold of 9478688768B
Object store memory usage: [- objects spillable: 3
Top 10 memory users: PID\tMEM(GB)\tCOMMAND
31465\t4.19\tray::ResourceTrainable.train
Refer to the documentation on how to address the out of memory issue."""


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("train", f"{TRACEBACK}{type(cause).__name__}: {cause}", cause)


def judge(error: RayError) -> Cause | None:
    return TrialError.of(error, f"Failure # 1 (occurred at now)\n{error}\n", STORAGE).cause


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


def test_what_ray_ended_for_its_memory_is_one_sentence() -> None:
    error = as_actor_error(OutOfMemoryError(OUT_OF_MEMORY))
    found = TrialError.of(error, f"Failure # 1 (occurred at now)\n{error}\n", STORAGE)
    assert found.cause is Cause.MEMORY
    assert found.sentence == (
        "Ray ended its worker, when 8.98GB of the 23.54GB of memory on its node were used"
    )


@pytest.mark.parametrize(
    "error",
    [
        ActorDiedError(),
        RayActorError(),
        NodeDiedError("node 3 is gone"),
        *map(as_actor_error, (WorkerCrashedError(), OwnerDiedError("0a", None, ""))),
        *map(as_actor_error, (LocalRayletDiedError(), ValueError("a result that cannot be read"))),
    ],
)
def test_a_lost_worker(error: RayError) -> None:
    assert judge(error) is Cause.WORKER


def test_a_killed_worker_is_lost_whatever_ray_thinks_may_have_killed_it() -> None:
    text = f"Failure # 1 (occurred at 2026-11-25_05-40-44)\n{KILLED}\n"
    assert TrialError.of(ActorDiedError(), text, STORAGE).cause is Cause.WORKER


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


def test_the_sentence_names_the_exception() -> None:
    error = task_error(NonFiniteError("loss term 'ce' is not finite"))
    found = TrialError.of(error, str(error), STORAGE)
    assert found.sentence == "NonFiniteError: loss term 'ce' is not finite"
    assert "run_epoch" in found.text


class TwoValuesError(Exception):
    """A common mistake: unpickling passes one argument, the message, instead of two."""

    def __init__(self, expected: int, found: int) -> None:
        super().__init__(f"expected {expected}, found {found}")


def test_an_exception_that_ray_cannot_read_again_is_the_trials_own() -> None:
    """Fails if it counts as a lost worker: it would run again three times, its cause unreported."""
    arrived = RayError.from_bytes(task_error(TwoValuesError(3, 4)).to_bytes())
    assert isinstance(arrived, UnserializableException)
    error = as_actor_error(arrived)
    found = TrialError.of(error, f"Failure # 1 (occurred at now)\n{error}\n", STORAGE)
    assert found.cause is None
    assert found.sentence == "TwoValuesError: expected 3, found 4"


OWN = 'File "/home/me/student.py", line 3, in forward'
KRSCALES = f'File "{checkpoint.__file__}", line 3, in save_weights'
LIBRARYS = 'File "/venv/lib/python3.12/site-packages/torch/serialization.py", line 9, in save'


def judged(number: int, file: str, *frames: str) -> str | None:
    """Return what is reported about the storage if code raises this OSError, or None."""
    cause = OSError(number, os.strerror(number), *([file] if file else []))
    text = "".join(f"  {frame}\n    f()\n" for frame in (KRSCALES, *frames))
    found = TrialError.of(RayTaskError("train", text, cause), f"{text}OSError: {cause}", STORAGE)
    assert found.cause is None
    return str(found.storage) if found.storage else None


@pytest.fixture(autouse=True)
def _room_on_the_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whose_storage, "_is_full", lambda root: False)


NAMES = (errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


@pytest.mark.parametrize("number", [*NAMES, errno.ENOSPC, errno.EROFS, errno.EIO, errno.ESTALE])
def test_what_a_students_own_code_cannot_open_is_its_trials_fault(number: int) -> None:
    assert judged(number, "/home/me/table", OWN) is None
    assert judged(number, "/home/me/table", OWN, LIBRARYS) is None
    assert judged(number, "", OWN, LIBRARYS) is None


@pytest.mark.parametrize("number", NAMES)
def test_a_wrong_name_counts_on_the_storage_and_in_krscale_only(number: int) -> None:
    assert judged(number, "/runs/digits", OWN) is None
    assert judged(number, "/home/me/hub", LIBRARYS) is None
    assert "/runs/digits: " in str(judged(number, "/runs/digits", LIBRARYS))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.ESTALE])
def test_a_storage_that_fails_counts_whoever_wrote_there(number: int) -> None:
    assert judged(number, "/runs/digits/note.txt", OWN)
    assert judged(number, "")
    assert judged(number, "", LIBRARYS)


def test_a_full_disk_without_a_name_counts_where_the_storage_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(whose_storage, "_is_full", lambda root: True)
    assert judged(errno.ENOSPC, "", OWN)
    assert judged(errno.ENOSPC, "/home/me/table", OWN) is None


STARTING = """Failure # 1 (occurred at 2026-11-28_15-56-03)
The actor died because of an error raised in its creation task, ray::StudentTrial.__init__() \
(pid=19863, ip={node}, actor_id=ef2470e9, repr=<StudentTrial object at 0x7ff2>)
  File "krscale/files.py", line 148, in new_folder
    temporary.mkdir(parents=True)
OSError: [Errno 28] No space left on device: '/disk/cache/stores/.a.unfetched'
  File "krscale/files.py", line 300, in _room_on_disk
    raise found from error
krscale.errors.DiskFullError: /disk/cache/stores/a: the disk is full. Free some space.
"""


@pytest.mark.parametrize(
    ("node", "where"), [("192.0.2.2", "on the node 192.0.2.2: "), ("127.0.0.1", "")]
)
def test_a_full_disk_of_a_node_is_named_with_the_node(node: str, where: str) -> None:
    """The worker fails to start because it fetches data there; the driver's disk may have room."""
    text = STARTING.format(node=node)
    died = ActorDiedError(task_error(OSError(errno.ENOSPC, text)))
    found = TrialError.of(died, text, Path("s3://bucket/runs"))
    expected = f"{where}/disk/cache/stores/a: the disk is full. Free some space."
    assert str(found.storage) == expected


OTHER_TORCH = """Failure # 1 (occurred at 2026-11-28_15-56-03)
The actor died because of an error raised in its creation task, ray::StudentTrial.__init__() \
(pid=19863, ip=192.0.2.7, actor_id=ef2470e9, repr=<StudentTrial object at 0x7ff2>)
  File "krscale/cluster/versions.py", line 50, in refuse_other_versions
    raise NodeError(
krscale.errors.NodeError: seven has other versions than here: torch 2.5 (here 2.13). Install.
"""


def test_a_node_that_cannot_work_on_the_run_is_no_trials_fault() -> None:
    """It joined after the start; trials that failed there would count as planned ones."""
    found = TrialError.of(ActorDiedError(task_error(ValueError())), OTHER_TORCH, STORAGE)
    expected = "on the node 192.0.2.7: seven has other versions than here: torch 2.5 (here 2.13)."
    assert str(found.storage) == f"{expected} Install."


OF_A_GROUP = """Failure # 1 (occurred at 2026-11-28_15-56-03)
The actor died because of an error raised in its creation task, ray::StudentTrial.__init__() \
(pid=19863, ip=192.0.2.7, actor_id=ef2470e9, repr=<StudentTrial object at 0x7ff2>)
  File "krscale/search/on_ray/group.py", line 92, in _beside
    raise first_cause(None, watch.failures)
krscale.errors.KrscaleError: The actor died because of an error raised in its creation task, \
ray::Rank.__init__() (pid=41, ip=192.0.2.8, actor_id=ab2470e9, repr=<Rank object at 0x7ff2>)
  File "krscale/files.py", line 300, in _room_on_disk
    raise found from error
krscale.errors.DiskFullError: /disk/cache/stores/a: the disk is full. Free some space.
"""


def test_the_node_is_that_of_the_worker_of_a_group_that_failed() -> None:
    """The first worker, on another node, passes the error on."""
    found = TrialError.of(ActorDiedError(task_error(ValueError())), OF_A_GROUP, STORAGE)
    expected = "on the node 192.0.2.8: /disk/cache/stores/a: the disk is full. Free some space."
    assert str(found.storage) == expected
