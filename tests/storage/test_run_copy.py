"""What a run folder and its copy exchange, and in which order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from run_folders import say, write

from krscale.errors import StorageError
from krscale.storage import run_mirror
from krscale.storage.objects import Objects
from krscale.storage.run_files import stamps
from krscale.storage.run_mirror import gather, mirrored, refresh
from krscale.storage.trial_files import send_file

pytestmark = pytest.mark.usefixtures("at_once")

Machine = Callable[[str], Path]


def test_what_was_made_where_a_run_is_only_read_stays(machine: Machine, tmp_path: Path) -> None:
    """A refit takes hours; the next command that reads the run must not delete what others made."""
    bucket = tmp_path / "bucket" / "run"
    one = write(machine("one") / "run", experiment_dot_json="{}", origin_dot_json="data")
    with mirrored(one, say):
        write(one, export__a__card="1", export__a__pt2="1", export__b__card="1", students__s="w")
    two = machine("two") / "run"
    refresh(two)
    assert (two / "export/b/card").is_file()
    write(two, export__a__card="2", export__a__onnx="2", refit__f__weights="2", students__t="w")
    write(two, report_dot_html="page", curve_dot_csv="1")
    refresh(two)
    assert (two / "report.html").read_text() == "page"
    assert not (two / "students/t").exists()
    assert {
        name: (two / name).read_text() for name in stamps(two) if name.startswith("export")
    } == {
        **{"export/a/card": "2", "export/a/pt2": "1", "export/a/onnx": "2"},
        "export/b/card": "1",
    }
    (two / "export/a/pt2").unlink()  # as if an export without it had replaced the other
    with mirrored(two, say):
        assert (two / "refit/f/weights").is_file()
    made = {"export/a/card", "export/a/onnx", "export/b/card", "refit/f/weights"}
    assert stamps(bucket).keys() == made | {"experiment.json", "origin.json", "students/s"}
    assert not (bucket / "report.html").exists(), "an older page may replace a newer one"
    machine("one")
    with mirrored(one, say):
        write(one, origin_dot_json="other data")
    machine("two")
    write(two, refit__g__weights="2")
    refresh(two)
    assert not (two / "refit/g/weights").exists()


def test_nothing_is_sent_while_students_are_brought(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread would send back what has arrived, and write its record while that changes."""
    one = write(machine("one") / "run")
    with mirrored(one, say):
        copy = run_mirror._active[str(one)].copy
        two = write(machine("two") / "run", students__s="w", students__s_dot_digest_dot_json="{}")
        send_file(two / "students/s", two / "students/s.digest.json")
        machine("one")
        bring, threads = copy._bring, list[threading.Thread]()

        def send_meanwhile(name: str) -> None:
            bring(name)
            if not threads:
                threads.append(threading.Thread(target=copy.send))
                threads[0].start()
                threads[0].join(0.2)
                assert threads[0].is_alive()

        monkeypatch.setattr(copy, "_bring", send_meanwhile)
        gather(one)
        threads[0].join()
        assert (one / "students/s").read_text() == "w"


def test_what_refers_is_sent_after_what_it_refers_to(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    one, order = write(machine("one") / "run"), list[str]()
    put = Objects._put

    def noted(self: Objects, key: str, write_to: Callable[[object], object]) -> None:
        order.append(key.removeprefix("run/"))
        if key.endswith("seed-1"):  # the journal grows while weights are on their way
            write(one, journal_dot_log="1\n2\n")
        put(self, key, write_to)

    with mirrored(one, say):
        monkeypatch.setattr(Objects, "_put", noted)
        write(
            one,
            journal_dot_log="1\n",
            curve_dot_json="c",
            students__seed_1="w",
            tracking__state_dot_json="{}",
            tracking__spool_dot_jsonl="1\n",
            experiment_dot_json="{}",
        )
        (one / "students/seed_1").rename(one / "students/seed-1")
        run_mirror._active[str(one)].copy.send()
        assert order == [
            "experiment.json",
            "students/seed-1",
            "tracking/spool.jsonl",
            "tracking/state.json",
            "journal.log",
            "curve.json",
        ]
        assert Objects.open(uri).read("run/journal.log") == b"1\n"  # before the weights were sent


def test_half_of_a_checkpoint_is_never_in_the_storage(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next driver of a single training finds a state that its manifest does not list."""
    one, put, left = write(machine("one") / "run"), Objects._put, [1]

    def put_once(self: Objects, key: str, write_to: Callable[[object], object]) -> None:
        if not left:
            raise StorageError("cut off.")
        left.pop()
        put(self, key, write_to)

    with mirrored(one, say):
        copy = run_mirror._active[str(one)].copy
        _checkpoints(one, "first")
        copy.send()
        _checkpoints(one, "second")
        with monkeypatch.context() as broken:
            broken.setattr(Objects, "_put", put_once)
            with pytest.raises(StorageError, match="cut off"):
                copy.send()
        two = machine("two") / "run"
        refresh(two)
        for folder in ("checkpoint", "refit/5f0c/checkpoint"):
            state, manifest = two / folder / "state.pt", two / folder / "manifest.json"
            assert state.read_text() == manifest.read_text()


def _checkpoints(run: Path, text: str) -> None:
    """Write the checkpoint of the run and that of a refit."""
    write(run, checkpoint__state_dot_pt=text, checkpoint__manifest_dot_json=text)
    write(
        run,
        refit__5f0c__checkpoint__state_dot_pt=text,
        refit__5f0c__checkpoint__manifest_dot_json=text,
    )


def test_a_checkpoint_that_is_there_as_files_becomes_one_object(
    machine: Machine, tmp_path: Path, uri: str
) -> None:
    """As an older krscale sends it, or a user copies it."""
    bucket = write(tmp_path / "bucket" / "run", experiment_dot_json="{}")
    _checkpoints(bucket, "old")
    one = write(machine("one") / "run")
    _checkpoints(one, "older")  # from before another machine went on
    with mirrored(one, say):
        assert (one / "checkpoint/state.pt").read_text() == "old"
        assert (one / "refit/5f0c/checkpoint/state.pt").read_text() == "old"
        _checkpoints(one, "new")
    names = {key for key in Objects.open(uri).list("run") if "checkpoint" in key}
    assert names == {"run/checkpoint.tar", "run/refit/5f0c/checkpoint.tar"}
    _checkpoints(bucket, "older still")  # beside the object
    two = write(machine("two") / "run")
    with mirrored(two, say):
        assert (two / "checkpoint/state.pt").read_text() == "new"
        assert (two / "refit/5f0c/checkpoint/manifest.json").read_text() == "new"
    assert {key for key in Objects.open(uri).list("run") if "checkpoint" in key} == names


def test_nothing_is_sent_twice(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    one = write(machine("one") / "run")
    with mirrored(one, say):
        write(one, journal_dot_log="1\n", students__a="w")
    with mirrored(one, say), monkeypatch.context() as watched:
        watched.setattr(Objects, "_put", _refuse)
        gather(one)  # `gather` sends first


def test_a_thread_that_does_not_wait_sends_nothing_beside_another(machine: Machine) -> None:
    one = write(machine("one") / "run")
    with mirrored(one, say):
        copy = run_mirror._active[str(one)].copy
        write(one, journal_dot_log="1\n")
        with copy._exchanging:
            assert not copy.send(wait=False)
        assert "journal.log" not in copy.sent
        assert copy.send(wait=False)
        assert "journal.log" in copy.sent


def _refuse(*_arguments: object) -> None:
    raise StorageError("no way there.")
