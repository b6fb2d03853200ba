"""The folder of a run and its copy in a storage, on machines that share nothing else."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from run_folders import say, write

from krscale.errors import StorageError, UserError
from krscale.runs.aside import results_in
from krscale.storage import driver_lock, heartbeats, run_copy, run_mirror
from krscale.storage.address import mark, working_folder
from krscale.storage.objects import Objects
from krscale.storage.run_files import rank, stamps
from krscale.storage.run_mirror import discard, gather, mirrored, refresh, send, sign_of
from krscale.storage.trial_files import (
    bring_checkpoint,
    drop_checkpoint,
    send_checkpoint,
    send_file,
    send_sign,
)

Machine = Callable[[str], Path]


pytestmark = pytest.mark.usefixtures("at_once")


def test_a_run_goes_on_elsewhere(machine: Machine) -> None:
    one = write(machine("one") / "run")
    with mirrored(one, say):
        write(one, experiment_dot_json="{}", journal_dot_log="1\n2\nhalf", students__a="w")
        write(one, unfinished__kd__trial_7__state_dot_pt="s", tune__x="t", _dot_owner="me")
        write(one, unfinished__kd__trial_7__manifest_dot_json="m")
    two, lines = machine("two") / "run", list[str]()
    two.mkdir(parents=True)
    with mirrored(two, lines.append):
        assert (two / "journal.log").read_text() == "1\n2\n"  # half a line is not sent
        assert (two / "students/a").read_text() == "w"
        assert (two / "unfinished/kd/trial_7/state.pt").read_text() == "s"
        assert not (two / "tune").exists()
        write(two, journal_dot_log="1\n2\n3\n")
        (two / "students/a").unlink()
    assert "last run elsewhere" in lines[0]
    with mirrored(machine("one") / "run", say):
        assert (one / "journal.log").read_text() == "1\n2\n3\n"
        assert not (one / "students/a").exists()
        assert (one / ".owner").exists()


def test_a_run_that_was_deleted_and_begun_elsewhere_is_fetched(
    machine: Machine, tmp_path: Path
) -> None:
    one = write(machine("one") / "run")
    with mirrored(one, say):
        write(one, curve_dot_json="1")
    shutil.rmtree(tmp_path / "bucket" / "run")
    two = write(machine("two") / "run")
    with mirrored(two, say):  # also the first start of this run
        write(two, curve_dot_json="2")
    machine("one")
    refresh(one)
    assert (one / "curve.json").read_text() == "2"
    with mirrored(one, say):
        assert (one / "curve.json").read_text() == "2"


def test_a_run_that_was_copied_to_the_storage_goes_on_there(
    machine: Machine, tmp_path: Path
) -> None:
    """No driver has left a record there; a new run of the same name must not replace the copy."""
    files = {"experiment_dot_json": "{}", "journal_dot_log": "1\n2\n", "students__a": "w"}
    unfinished = {"unfinished__kd__1__trial-7__state_dot_pt": "s"}
    copied = write(tmp_path / "bucket" / "run", **files, **unfinished, _dot_owner="me")
    one = machine("one") / "run"
    refresh(one)
    assert (one / "journal.log").read_text() == "1\n2\n"
    two, lines = write(machine("two") / "run"), list[str]()
    with mirrored(two, lines.append):
        assert (two / "journal.log").read_text() == "1\n2\n"
        assert (two / "students/a").read_text() == "w"
        assert (two / "unfinished/kd/1/trial-7/state.pt").read_text() == "s"
        assert not (two / ".owner").exists()
        write(two, journal_dot_log="1\n2\n3\n")
    assert "was put there by no driver" in lines[0]
    assert (copied / "journal.log").read_text() == "1\n2\n3\n"


def test_two_uris_of_one_storage_have_one_driver_at_a_time(
    uri: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each URI has its own folder on the machine, and so its own local lock."""
    one = write(machine("one") / "run")
    other = f"{uri}?region=any"
    mark(other)
    two = write(working_folder(other) / "run")
    with mirrored(one, say):
        first = run_mirror._active[str(one)]

        def beat(_seconds: float) -> None:
            with suppress(UserError):  # of the first, as the second has taken over
                first.lock.beat()

        monkeypatch.setattr(driver_lock.DriverLock.__init__, "__defaults__", (beat, time.monotonic))
        with pytest.raises(UserError, match="is being run now by process"), mirrored(two, say):
            pytest.fail("two drivers")


def test_what_a_worker_elsewhere_is_to_go_on_from_is_sent_at_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = write(machine("one") / "run")
    with mirrored(one, say):
        write(one, unfinished__kd__1__trial__state_dot_pt="s")
        write(one, unfinished__kd__1__trial__manifest_dot_json="m")
        send(one)
        elsewhere = machine("two") / "run/unfinished/kd/1/trial"
        bring_checkpoint(elsewhere)
        assert (elsewhere / "state.pt").read_text() == "s"
        machine("one")
        with monkeypatch.context() as broken:
            broken.setattr(Objects, "write", _refuse)
            send(write(one, journal_dot_log="1\n"))  # no error: it is sent later
    send(one)  # nothing, as no driver runs it


def test_who_reads_a_run_waits_for_a_driver_that_fetches_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the reader's fetch overwrites what the driver has begun to write."""
    one = write(machine("one") / "run")
    with mirrored(one, say):
        write(one, journal_dot_log="1\n")
    two, readers = write(machine("two") / "run"), list[threading.Thread]()
    fetch = run_copy.RunCopy.fetch

    def fetch_while_somebody_reads(copy: run_copy.RunCopy) -> None:
        assert not readers, "fetched once"
        readers.append(threading.Thread(target=refresh, args=(two,)))
        readers[0].start()
        readers[0].join(0.5)  # time enough to fetch
        fetch(copy)

    monkeypatch.setattr(run_copy.RunCopy, "fetch", fetch_while_somebody_reads)
    with mirrored(two, say):
        write(two, journal_dot_log="1\n2\n", curve_dot_json="new")
        readers[0].join()
        assert (two / "journal.log").read_text() == "1\n2\n"
        assert (two / "curve.json").exists()


def test_a_run_that_has_only_been_claimed_has_come_to_nothing(machine: Machine) -> None:
    """Files that are not results of the run stay when the results are put aside."""
    one = write(machine("one") / "run")
    with mirrored(one, say):
        assert results_in(one) == []
    assert results_in(one) == []


def test_a_driver_writes_heartbeats_while_much_is_brought(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another driver would take it for dead while its thread waits to send."""
    monkeypatch.setattr(heartbeats, "TRY_SECONDS", 0.01)
    monkeypatch.setattr(heartbeats, "BEAT_SECONDS", 0.0)
    one = write(machine("one") / "run", journal_dot_log="1\n")
    with mirrored(one, say):
        mirror, beats = run_mirror._active[str(one)], threading.Semaphore(0)
        with mirror.copy._exchanging:
            monkeypatch.setattr(mirror.lock, "beat", beats.release)
            for _ in range(3):  # one may be due before the thread looks for what to send
                assert beats.acquire(timeout=30)


def test_a_driver_writes_heartbeats_between_objects(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole run takes minutes to send or fetch; another driver would take it for dead."""
    monkeypatch.setattr(heartbeats, "BEAT_SECONDS", 0.0)
    beats = list[str]()
    monkeypatch.setattr(driver_lock.DriverLock, "beat", lambda lock: beats.append(lock.run))
    one = write(machine("one") / "run")
    with mirrored(one, say):
        write(one, experiment_dot_json="{}", journal_dot_log="1\n", students__a="w")
        run_mirror._active[str(one)].copy.send()
        assert len(beats) == 3
        (one / "students/a").unlink()
        run_mirror._active[str(one)].copy.send()
        assert len(beats) == 4
    with mirrored(write(machine("two") / "run"), say):
        assert len(beats) == 6


def test_who_was_cut_off_sends_nothing_over_what_its_successor_has_sent(
    machine: Machine, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its next heartbeat would show that it was cut off only ten seconds later."""
    one, objects = write(machine("one") / "run"), Objects.open(uri)

    def drive() -> None:
        with mirrored(one, say):
            mirror = run_mirror._active[str(one)]
            write(one, journal_dot_log="of the first\n")
            mirror.heartbeats._next_at = 0.0
            with monkeypatch.context() as broken:
                broken.setattr(Objects, "read", _refuse)
                with pytest.raises(StorageError):
                    mirror.copy.send()
            driver_lock.DriverLock(objects, "run", say).acquire()
            objects.write("run/journal.log", b"of the second\n")
            mirror.copy.send()

    with pytest.raises(UserError, match="is being run now"):
        drive()
    assert objects.read("run/journal.log") == b"of the second\n"


def test_whoever_ran_last_keeps_what_could_not_be_sent(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = write(machine("one") / "run")
    with mirrored(one, say):
        write(one, journal_dot_log="1\n")
    broken, refused = monkeypatch.context(), pytest.raises(StorageError, match="the same command")
    with broken as context, refused, mirrored(one, say):
        _cut_off(context, write(one, journal_dot_log="1\n2\n"))
    with mirrored(one, say):
        assert (one / "journal.log").read_text() == "1\n2\n"
    two = machine("two") / "run"
    refresh(two)
    assert (two / "journal.log").read_text() == "1\n2\n"


def _cut_off(broken: pytest.MonkeyPatch, _written: Path) -> None:
    broken.setattr(Objects, "write", _refuse)


def _refuse(*_arguments: object) -> None:
    raise StorageError("no way there.")


def test_one_driver_at_a_time(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    one = write(machine("one") / "run")
    with mirrored(one, say):
        first = run_mirror._active[str(one)]
        two = write(machine("two") / "run")

        def beat(_seconds: float) -> None:
            with suppress(UserError):  # of the first, as the second has taken over
                first.lock.beat()

        monkeypatch.setattr(driver_lock.DriverLock.__init__, "__defaults__", (beat, time.monotonic))
        with pytest.raises(UserError, match="is being run now by process"), mirrored(two, say):
            pytest.fail("two drivers")
        machine("one")


def test_a_machine_that_was_copied_is_another(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machines of one image have the same identifier; a driver on one may run beside the other."""
    one = write(machine("one") / "run")
    with mirrored(one, say):
        first = run_mirror._active[str(one)]
        two = write(machine("two") / "run")
        shutil.copy(one.parents[1] / ".machine", two.parents[1] / ".machine")

        def beat(_seconds: float) -> None:
            with suppress(UserError):  # of the first, as the second has taken over
                first.lock.beat()

        monkeypatch.setattr(driver_lock.platform, "node", lambda: "two")
        monkeypatch.setattr(driver_lock.DriverLock.__init__, "__defaults__", (beat, time.monotonic))
        with pytest.raises(UserError, match="is being run now by process"), mirrored(two, say):
            pytest.fail("two drivers")
        machine("one")


def test_a_driver_that_is_gone_is_let_go(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine("one")
    objects = Objects.open(f"file://{machine('one')}")
    now = [0.0]
    gone = driver_lock.DriverLock(objects, "run", say, sleep=lambda _s: None)
    gone.acquire()
    machine("two")
    said = list[str]()

    def wait(seconds: float) -> None:
        now[0] += seconds

    after = driver_lock.DriverLock(objects, "run", said.append, sleep=wait, clock=lambda: now[0])
    assert after.acquire() is not None
    assert "waiting up to" in said[0]
    assert now[0] >= driver_lock.EXPIRE_SECONDS - 5
    with pytest.raises(UserError, match="is being run now"):
        gone.beat()
    machine("two")
    again = driver_lock.DriverLock(objects, "run", said.append, sleep=wait, clock=lambda: now[0])
    again.acquire()  # no wait on the same machine, as the caller locks the folder
    assert len(said) == 1
    assert again.start.number == 3


def test_workers_elsewhere_send_what_the_driver_needs(machine: Machine, uri: str) -> None:
    one = write(machine("one") / "run")
    with mirrored(one, say):
        write(one, students__s="old", students__s_dot_digest_dot_json="{old}")
        gather(one)
        two = write(machine("two") / "run", students__s="new", students__s_dot_digest_dot_json="{}")
        write(two, unfinished__kd__t1__state_dot_pt="s", unfinished__kd__t1__manifest_dot_json="m")
        send_file(two / "students/s", two / "students/s.digest.json")
        send_checkpoint(two / "unfinished/kd/t1")
        send_sign(two / "unfinished/kd/t1.sign")
        machine("one")
        gather(one)
        assert (one / "students/s").read_text() == "new"
        bring_checkpoint(one / "unfinished/kd/t1")
        assert (one / "unfinished/kd/t1/state.pt").read_text() == "s"
        mirror = run_mirror._active[str(one)]
        mirror._look_at_workers()
        assert sign_of(one, one / "unfinished/kd/t1.sign")
        discard(one, one / "unfinished/kd/t1.sign")
        mirror._look_at_workers()
        assert "run/unfinished/kd/t1.sign" not in Objects.open(uri).list("run")


def test_the_checkpoint_of_a_trial_that_has_ended_leaves_the_machine_of_its_worker(
    machine: Machine,
) -> None:
    """One of each trial would fill the disk of a node."""
    one = write(machine("one") / "run", unfinished__kd__t1__state_dot_pt="s")
    with mirrored(one, say):
        drop_checkpoint(one / "unfinished/kd/t1")
        assert (one / "unfinished/kd/t1").is_dir(), "the driver removes its own"
        two = write(machine("two") / "run", unfinished__kd__t2__state_dot_pt="s")
        drop_checkpoint(two / "unfinished/kd/t2")
        drop_checkpoint(two / "unfinished/kd/t3")
        assert not (two / "unfinished/kd/t2").exists()
        machine("one")


def test_after_a_long_sending_the_next_is_a_minute_away() -> None:
    """What is written meanwhile is lost with the machine."""
    assert run_mirror._after(100.0, 101.0) == 110.0
    assert run_mirror._after(100.0, 200.0) == 260.0


def test_a_worker_beside_its_driver_sends_nothing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = write(machine("one") / "run")
    with mirrored(one, say):
        write(one, students__s="w")
        with monkeypatch.context() as watched:
            watched.setattr(Objects, "_put", _refuse)
            send_file(one / "students/s")
    monkeypatch.setattr(Objects, "_put", _refuse)
    with pytest.raises(StorageError):
        send_file(one / "students/s")  # the driver has left


def test_workers_elsewhere_are_seen_while_one_object_is_sent(
    machine: Machine, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may take longer than a trial may be without progress, which would be ended."""
    one, upload, sent = write(machine("one") / "run"), Objects.upload, list[int | None]()
    monkeypatch.setattr(run_mirror, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(run_mirror, "LIST_SECONDS", 0.01)
    sign = one / "unfinished/kd/t1.sign"

    def slow(objects: Objects, key: str, path: Path) -> str:
        objects.write("run/unfinished/kd/t1.sign", b"1")
        for _ in range(3000):
            if sign_of(one, sign):
                break
            time.sleep(0.01)
        sent.append(sign_of(one, sign))
        return upload(objects, key, path)

    with mirrored(one, say):
        monkeypatch.setattr(Objects, "upload", slow)
        write(one, students__a="w")
        for _ in range(3000):  # the thread sends it
            if sent:
                break
            time.sleep(0.01)
        assert sent
        assert sent[0]
    assert Objects.open(uri).read("run/students/a") == b"w"


def test_a_storage_that_is_a_folder_has_no_copy(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", journal_dot_log="1\n")
    with mirrored(folder, say):
        gather(folder)
        discard(folder, folder / "x")
        drop_checkpoint(folder)
        send_file(folder / "journal.log")
        bring_checkpoint(folder / "unfinished/x")
    refresh(folder)
    assert [path.name for path in folder.iterdir()] == ["journal.log"]


def test_every_file_has_one_place_in_the_order(tmp_path: Path) -> None:
    write(tmp_path, journal_dot_log="", journal_dot_log_dot_lock="", tracking__lock="")
    assert list(stamps(tmp_path)) == ["journal.log"]
    assert rank("earlier-1/journal.log") == 1


def test_an_archive_of_strangers_is_refused(machine: Machine, uri: str) -> None:
    one = machine("one") / "run"
    Objects.open(uri).write("run/unfinished/kd/t1.tar", b"no archive")
    with pytest.raises(StorageError, match="not a checkpoint"):
        bring_checkpoint(one / "unfinished/kd/t1")
    assert not (one / "unfinished/kd/t1").exists()


def test_what_ended_a_run_is_the_error_though_its_end_cannot_be_sent(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, said = machine("one") / "run", []
    run.mkdir(parents=True)

    def unreachable(_objects: Objects, key: str, _content: bytes) -> None:
        raise StorageError(f"cannot write {key}")

    def fail() -> None:
        with mirrored(run, said.append):
            write(run, journal_dot_log="{}\n")
            monkeypatch.setattr(Objects, "write", unreachable)
            raise ValueError("of the search")

    with pytest.raises(ValueError, match="of the search"):
        fail()
    assert len(said) == 1
    assert "the same command on this machine sends it" in said[0]
