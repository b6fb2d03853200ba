"""The first worker of a group and the others; the tests answer the calls to the others."""

import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import (
    ActorDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayTaskError,
    UnserializableException,
)

from krscale.errors import KrscaleError, NonFiniteError
from krscale.parallel import Workers
from krscale.search.on_ray import group
from krscale.search.on_ray.group import Group, LostRankError, first_cause
from krscale.search.on_ray.trial_error import TrialError
from krscale.search.studies.retries import Cause

BROKEN = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4242")
NAN = NonFiniteError("loss term 'ce' is not finite in epoch 1")
OWN = ValueError("a class without a peer")
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.")
SECONDS = 0.2
"""Replaces the group's waits of several seconds."""


def raised(cause: Exception) -> RayTaskError:
    """Return what Ray raises for an exception in a worker."""
    return RayTaskError("Rank.run_epoch", f"{type(cause).__name__}: {cause}", cause)


@pytest.mark.parametrize(
    ("own", "others", "expected"),
    [
        (BROKEN, {1: raised(NAN)}, NAN),
        (NAN, {1: raised(NAN)}, NAN),
        (NAN, {1: raised(BROKEN)}, NAN),
        (BROKEN, {1: raised(BROKEN), 2: raised(FULL)}, FULL),
        (FULL, {}, FULL),
        (BROKEN, {1: raised(OWN)}, OWN),
        (None, {1: raised(NAN)}, NAN),
    ],
)
def test_what_made_the_others_fail_is_the_error_of_the_trial(
    own: Exception | None, others: dict[int, Exception], expected: Exception
) -> None:
    assert first_cause(own, others) is expected


def test_an_exception_that_ray_cannot_read_is_an_error_of_the_trial() -> None:
    """Fails if its worker counts as lost: the worker is alive and reported what happened."""
    unread = UnserializableException("  File 'net.py', line 1\nOwnError: 3 is not 4")
    found = first_cause(BROKEN, {1: raised(BROKEN), 2: unread})
    assert isinstance(found, KrscaleError)
    assert str(found).endswith("OwnError: 3 is not 4")


@pytest.mark.parametrize(
    ("own", "others", "rank", "cause"),
    [
        (BROKEN, {1: raised(BROKEN), 2: ActorDiedError()}, 3, Cause.WORKER),
        (BROKEN, {1: NodeDiedError("node 3 is gone")}, 2, Cause.WORKER),
        (BROKEN, {1: OutOfMemoryError("the node running low on memory")}, 2, Cause.MEMORY),
        (BROKEN, {}, 1, Cause.WORKER),
        (None, {1: raised(BROKEN)}, 2, Cause.WORKER),
    ],
)
def test_a_worker_that_is_gone_is_no_fault_of_the_trial(
    own: Exception | None, others: dict[int, Exception], rank: int, cause: Cause
) -> None:
    found = first_cause(own, others)
    assert isinstance(found, LostRankError)
    assert str(found).startswith(f"worker {rank} of the group: ")
    text = f'  File "group.py", line 1, in together\n    raise\ngroup.LostRankError: {found}\n'
    assert TrialError.of(raised(found), text, Path("storage")).cause is cause


class FakeRay:
    """The part of Ray that a group uses; the tests end the calls to workers themselves."""

    def __init__(self, others: int) -> None:
        self.futures: list[Future[None]] = []
        self.ended = threading.Event()
        call = SimpleNamespace(remote=self._call)
        self.ranks = [SimpleNamespace(run_epoch=call) for _ in range(others)]

    def _call(self) -> "Future[None]":
        self.futures.append(Future())
        return self.futures[-1]

    def wait(self, futures: list[Any], timeout: float | None) -> tuple[list[Any], list[Any]]:
        done, waiting = wait(futures, timeout, FIRST_COMPLETED)
        return list(done), list(waiting)

    def get(self, future: "Future[None]") -> None:
        future.result()

    def kill(self, rank: Any) -> None:
        assert rank in self.ranks
        self.ended.set()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    found = FakeRay(others=2)
    monkeypatch.setattr(group, "ray", found)
    monkeypatch.setattr(group, "OTHERS_SECONDS", SECONDS)
    monkeypatch.setattr(group, "UNSTUCK_SECONDS", SECONDS)
    return found


def own_part(fake: FakeRay, *ends: Exception | None) -> Any:
    """Return the first worker's part, during which the others end as given; the rest never end."""

    def own() -> str:
        for future, end in zip(fake.futures, ends, strict=False):
            future.set_exception(end) if end else future.set_result(None)
        return "metrics"

    return own


def test_all_do_their_part_and_the_first_returns(fake: FakeRay) -> None:
    found = Group(fake.ranks, Workers()).together("run_epoch", own=own_part(fake, None, None))
    assert found == "metrics"
    assert not fake.ended.is_set()


def test_the_first_is_freed_where_it_waits_for_one_that_failed(fake: FakeRay) -> None:
    """Without the watch it would wait for ever; this test waits for 20 seconds."""

    def own() -> None:
        fake.futures[0].set_exception(raised(FULL))
        assert fake.ended.wait(20.0), "the others are ended, which breaks its connection"
        raise BROKEN

    with pytest.raises(torch.OutOfMemoryError):
        Group(fake.ranks, Workers()).together("run_epoch", own=own)


def test_what_the_first_raises_is_not_held_up_by_those_that_wait_for_it(fake: FakeRay) -> None:
    def own() -> None:
        raise FULL

    started = time.monotonic()
    with pytest.raises(torch.OutOfMemoryError):
        Group(fake.ranks, Workers()).together("run_epoch", own=own)
    assert time.monotonic() - started < 10.0


def test_one_that_fails_after_the_first_is_done_is_no_success(fake: FakeRay) -> None:
    together = Group(fake.ranks, Workers()).together
    with pytest.raises(LostRankError):
        together("run_epoch", own=own_part(fake, None, ActorDiedError()))
    assert fake.ended.is_set()


def test_a_process_that_stays_stuck_ends_itself(
    fake: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    exited = threading.Event()
    monkeypatch.setattr(group.os, "_exit", lambda code: exited.set())

    def own() -> None:
        fake.futures[0].set_exception(ActorDiedError())
        assert exited.wait(20.0)

    with pytest.raises(LostRankError):
        Group(fake.ranks, Workers()).together("run_epoch", own=own)


def test_a_worker_alone_calls_nobody() -> None:
    alone = Group((), Workers())
    assert alone.together("run_epoch", own=lambda: 7) == 7
    alone.end()
