"""`krscale clean` removes what no run uses, after confirmation, and nothing else."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from running import in_process

from krscale.errors import UserError
from krscale.runs import cleaning
from krscale.runs.experiment_file import read_experiment

main = in_process("clean")
NEEDED = ("data/a", "teachers/t1", "stores/s1", "given/g1")
UNNEEDED = ("data/b", "teachers/t2", "stores/s2", "given/g2", "teachers/.t3.unfinished")
HALF_TRAINED = "teachers/.t1.unfinished"
"""The unfinished training of a teacher that a run uses."""


def fill(folder: Path, num_bytes: int = 1_000_000) -> None:
    folder.mkdir(parents=True)
    (folder / "file").write_bytes(bytes(num_bytes))


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A storage with a run that uses some of the cache, and a folder that is not a run."""
    for name in (*NEEDED, *UNNEEDED, HALF_TRAINED):
        fill(tmp_path / "cache" / name)
    for name in ("students", "tune"):
        fill(tmp_path / "run" / name)
    (tmp_path / "run" / "experiment.json").touch()
    fill(tmp_path / "reports" / "tune")
    fill(tmp_path / "outside")
    (tmp_path / "cache" / "data" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "cache" / "data" / ".b.0123456789abcdef0123456789abcdef").mkdir()
    data, teachers, stores, given = ((tmp_path / "cache" / name,) for name in NEEDED)
    shared = SimpleNamespace(given=given, data=data, teachers=teachers, stores=stores, note="")
    monkeypatch.setattr(cleaning, "read_experiment", lambda folder: None)
    monkeypatch.setattr(cleaning.Shared, "of", lambda experiment: shared)
    return tmp_path


def files(storage: Path) -> set[str]:
    return {str(path.relative_to(storage)) for path in storage.rglob("file")}


def call(storage: Path, *arguments: str) -> int:
    return main(["--storage-path", str(storage), *arguments])


GO = {f"cache/{name}/file" for name in UNNEEDED} | {"run/tune/file"}


def test_what_no_run_uses_goes_and_nothing_else(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(storage)
    assert call(storage, "--yes") == 0
    said = capsys.readouterr().out
    assert before - files(storage) == GO
    assert (storage / "cache" / "data" / "link").is_symlink()
    assert said.count("1.0 MB  ") == len(GO)
    assert said.endswith("6.0 MB freed.\n")
    assert call(storage, "--yes") == 0
    assert "nothing to remove" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "terminal", "goes"),
    [("y\n", True, True), ("n\n", True, False), ("\n", True, False), ("y\n", False, False)],
)
def test_it_asks(
    storage: Path, monkeypatch: pytest.MonkeyPatch, answer: str, terminal: bool, goes: bool
) -> None:
    before, typed = files(storage), io.StringIO(answer)
    monkeypatch.setattr(typed, "isatty", lambda: terminal)
    monkeypatch.setattr("sys.stdin", typed)
    assert call(storage) == 0
    assert before - files(storage) == (GO if goes else set())


def test_what_a_run_has_begun_to_use_while_it_asked_stays(
    storage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A search that started meanwhile in another terminal used to lose its data and teacher."""
    before, typed = files(storage), io.StringIO("y\n")
    known = cleaning.Shared.of(None)  # type: ignore[arg-type]
    begun = SimpleNamespace(**{**vars(known), "data": (storage / "cache/data/b",)})

    def begin() -> bool:
        (storage / "other").mkdir()
        (storage / "other/experiment.json").touch()
        monkeypatch.setattr(cleaning, "read_experiment", lambda folder: folder.name)
        monkeypatch.setattr(cleaning.Shared, "of", {"run": known, "other": begun}.__getitem__)
        return True

    monkeypatch.setattr(typed, "isatty", begin)
    monkeypatch.setattr("sys.stdin", typed)
    assert call(storage) == 1
    assert before - files(storage) == GO - {"cache/data/b/file"}
    assert "cache/data/b: stays, a run has begun to use it" in capsys.readouterr().err


def test_what_a_process_works_on_stays(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = storage / "cache"
    locks = ("data/.b.lock", "teachers/t2.lock", "teachers/t3.lock", "stores/.s2.lock")
    held = [FileLock(path) for path in (*map(cache.joinpath, locks), storage / "run/.lock")]
    for lock in held:
        lock.acquire()
    try:
        before = files(storage)
        assert call(storage, "--yes") == 1
        assert before - files(storage) == {"cache/given/g2/file"}
    finally:
        for lock in held:
            lock.release()
    assert capsys.readouterr().err.count("stays, a process works on it") == 5


def test_where_a_run_cannot_be_read_nothing_of_the_cache_goes(
    storage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def damaged(folder: Path) -> None:
        raise UserError(f"{folder}/experiment.json: damaged")

    monkeypatch.setattr(cleaning, "read_experiment", damaged)
    before = files(storage)
    assert call(storage, "--yes") == 0
    assert before - files(storage) == {"run/tune/file"}
    assert "data, teachers and stores all stay" in capsys.readouterr().err


@pytest.mark.parametrize("left", ["journal.log", "curve.json", "environment.json"])
def test_a_run_whose_experiment_is_lost_keeps_what_it_may_use(
    storage: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    left: str,
) -> None:
    monkeypatch.setattr(cleaning, "read_experiment", read_experiment)
    (storage / "run" / "experiment.json").rename(storage / "run" / left)
    before = files(storage)
    assert call(storage, "--yes") == 0
    assert before - files(storage) == {"run/tune/file"}
    said = capsys.readouterr().err
    assert "stores all stay" in said
    assert "it has no experiment.json" in said


def test_what_is_not_known_of_a_run_is_said(
    storage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = cleaning.Shared.of(None)  # type: ignore[arg-type]
    unknown = SimpleNamespace(**{**vars(known), "note": "no module named 'my_net'"})
    monkeypatch.setattr(cleaning.Shared, "of", lambda experiment: unknown)
    assert call(storage) == 0
    said = capsys.readouterr().err
    assert f"more than {storage}/run uses stays, as that is not known: no module named" in said


def test_the_home_of_a_user_is_found(
    storage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(storage.parent))
    assert call(Path(f"~/{storage.name}")) == 0
    assert "--yes removes them" in capsys.readouterr().out
    assert call(Path("~nobody-at-all/runs")) == 2
    assert "no such user" in capsys.readouterr().err


def test_no_such_storage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path / "nothing") == 2
    assert "no such folder" in capsys.readouterr().err
