"""The thread that writes the heartbeats of a driver."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from run_folders import say, write

from krscale.errors import StorageError, UserError
from krscale.storage import driver_lock, heartbeats, run_mirror
from krscale.storage.objects import Objects
from krscale.storage.run_copy import RunCopy
from krscale.storage.run_mirror import RunMirror, mirrored

pytestmark = pytest.mark.usefixtures("at_once")

Machine = Callable[[str], Path]
MANY = 3000
"""Naps of 10 ms in which a thread of a busy machine has its turn."""


@pytest.fixture
def often(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat is always due, and the thread looks often."""
    monkeypatch.setattr(heartbeats, "BEAT_SECONDS", 0.0)
    monkeypatch.setattr(heartbeats, "TRY_SECONDS", 0.01)


def beats_of(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Count the heartbeats from now on."""
    beats, beat = threading.Semaphore(0), driver_lock.DriverLock.beat

    def counted(lock: driver_lock.DriverLock) -> None:
        beat(lock)
        beats.release()

    monkeypatch.setattr(driver_lock.DriverLock, "beat", counted)
    return beats


def take_over(mirror: RunMirror) -> None:
    """Write the record of another driver, between two heartbeats of this one."""
    lock = driver_lock.DriverLock(mirror.copy.objects, mirror.copy.run, say)
    lock.start = driver_lock.Start(7, "other", "other", "process 1 on two")
    with mirror.heartbeats._writing:
        lock._write()


def living() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "heartbeats"]


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("last", [False, True])
def test_heartbeats_are_written_while_one_object_is_sent(
    last: bool, machine: Machine, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may take minutes; another driver would take this one for dead and write the same run."""
    one, beats, upload = write(machine("one") / "run"), beats_of(monkeypatch), Objects.upload

    def slow(objects: Objects, key: str, path: Path) -> str:
        while beats.acquire(blocking=False):
            pass
        for _ in range(3):
            assert beats.acquire(timeout=30)
        return upload(objects, key, path)

    with mirrored(one, say):
        monkeypatch.setattr(Objects, "upload", slow)
        write(one, students__a="w")
        if not last:
            run_mirror._active[str(one)].copy.send()
    assert Objects.open(uri).read("run/students/a") == b"w"
    assert not living()


@pytest.mark.usefixtures("often")
def test_heartbeats_are_written_while_a_run_is_fetched(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mirrored(write(machine("one") / "run"), say):
        write(machine("one") / "run", students__a="w")
    beats, fetch = beats_of(monkeypatch), RunCopy.fetch

    def slow(copy: RunCopy) -> None:
        for _ in range(3):
            assert beats.acquire(timeout=30)
        fetch(copy)

    monkeypatch.setattr(RunCopy, "fetch", slow)
    with mirrored(write(machine("two") / "run"), say):
        pass
    assert not living()


@pytest.mark.usefixtures("often")
def test_a_driver_ends_when_another_has_taken_over(machine: Machine) -> None:
    one, said = write(machine("one") / "run"), list[str]()

    def drive() -> None:
        with mirrored(one, said.append):
            take_over(run_mirror._active[str(one)])
            nap()
            pytest.fail("not interrupted")

    with pytest.raises(UserError, match="is being run now by process 1 on two"):
        drive()
    assert len(said) == 1
    assert not living()


@pytest.mark.usefixtures("often")
def test_a_takeover_while_the_last_object_is_sent_is_the_error(machine: Machine, uri: str) -> None:
    """The main thread is not interrupted then, as that would hide the error."""
    one, upload, mirrors = write(machine("one") / "run"), Objects.upload, list[RunMirror]()

    def slow(objects: Objects, key: str, path: Path) -> str:
        take_over(mirrors[0])
        for _ in range(MANY):
            if not living():
                return upload(objects, key, path)
            time.sleep(0.01)
        raise AssertionError("nobody found out")

    def drive(patch: pytest.MonkeyPatch) -> None:
        with mirrored(one, say):
            mirrors.append(run_mirror._active[str(one)])
            write(one, students__a="w")
            patch.setattr(Objects, "upload", slow)

    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(UserError, match="is being run now by process 1 on two"),
    ):
        drive(patch)
    assert b"other" in (Objects.open(uri).read("run/.driver.json") or b"")


@pytest.mark.usefixtures("often")
def test_a_thread_that_fails_ends_the_driver(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without heartbeats, another driver would write the same run."""
    one = write(machine("one") / "run")

    def broken(_lock: driver_lock.DriverLock) -> None:
        raise RuntimeError("a defect")

    def drive() -> None:
        with mirrored(one, say):
            monkeypatch.setattr(driver_lock.DriverLock, "beat", broken)
            nap()
            pytest.fail("not interrupted")

    with pytest.raises(RuntimeError, match="a defect"):
        drive()


@pytest.mark.usefixtures("often")
def test_a_lock_that_cannot_be_renewed_is_said_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, said, tries = write(machine("one") / "run"), list[str](), threading.Semaphore(0)

    def cut_off(_lock: driver_lock.DriverLock) -> None:
        tries.release()
        raise StorageError("no way there.")

    with mirrored(one, said.append):
        with monkeypatch.context() as broken:
            broken.setattr(driver_lock.DriverLock, "beat", cut_off)
            for _ in range(3):
                assert tries.acquire(timeout=30)
        beats = beats_of(monkeypatch)
        assert beats.acquire(timeout=30), "it goes on"
    assert said == [
        "no way there. The lock of run is not renewed meanwhile; after 45 s, the same command on "
        "another machine may take the run over."
    ]


@pytest.mark.usefixtures("often")
def test_no_heartbeats_are_written_for_a_driver_that_could_not_begin(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_copy: RunCopy) -> None:
        raise StorageError("no way there.")

    monkeypatch.setattr(RunCopy, "gather", refuse)
    with (
        pytest.raises(StorageError, match="no way there"),
        mirrored(write(machine("one") / "run"), say),
    ):
        pytest.fail("begun")
    assert not living()


@pytest.mark.usefixtures("often")
def test_no_heartbeats_are_written_for_a_driver_that_is_interrupted_at_its_end(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a notebook the process lives on, and drivers on other machines were refused."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    def drive() -> None:
        one = write(machine("one") / "run")
        with mirrored(one, say):
            sending, _ = run_mirror._active[str(one)]._threads
            monkeypatch.setattr(sending, "join", interrupt)

    with pytest.raises(KeyboardInterrupt):
        drive()
    assert not living()


def nap() -> None:
    """Wait; Python interrupts no sleep in which `interrupt_main` was called."""
    for _ in range(MANY):
        time.sleep(0.01)
