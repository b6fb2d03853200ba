"""`krscale verify`, and one byte changed in any file: refused by the command that opens it."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from drilling import Drill
from finished_search import SETTINGS, without_ray
from running import check_exports_here, in_process, overrides, unpack

from krscale.digests import digest_path
from krscale.errors import UserError
from krscale.export import open_student
from krscale.files import CHECKSUM, read_json
from krscale.runs.verify import verify_run
from krscale.tracking.position import State
from krscale.tracking.spool import Event, Spool
from krscale.training.checkpoint import load_checkpoint, save_checkpoint

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("checked_here")]
PICK = ["RUN", "--max-params", "1M", "--format", "safetensors", "--no-register", "--quiet"]
OPENED_BY: dict[str, tuple[str, list[str]]] = {
    "cache/data/*/train.arrow": ("store", ["check", "RUN", "--quiet"]),
    "cache/data/*/val.arrow": ("store", ["check", "RUN", "--quiet"]),
    "cache/data/*/test.arrow": ("tune", ["SETTINGS"]),
    "cache/data/*/manifest.json": ("teach", ["SETTINGS"]),
    "cache/data/*/content.json": ("tune", ["SETTINGS"]),
    "cache/teachers/*/teacher.safetensors": ("tune", ["SETTINGS"]),
    "cache/teachers/*/probes-grid-4.pt": ("store", ["check", "RUN", "--quiet"]),
    "cache/teachers/*/gains-grid-4.json": ("teach", ["SETTINGS"]),
    "cache/teachers/*/facts.json": ("teach", ["SETTINGS"]),
    "cache/stores/*/manifest.json": ("teach", ["SETTINGS"]),
    "cache/stores/*/view-0000/shard-00000-*.arrow": ("teach", ["SETTINGS"]),
    "small/students/kr/*/seed-*.safetensors": ("tune", ["SETTINGS"]),
    "small/students/PICKED/*/seed-*.safetensors": ("pick", PICK),
    "small/curve.json": ("report", ["RUN"]),
    "small/experiment.json": ("pick", PICK),
    "small/latency.json": ("tune", ["SETTINGS"]),
    "small/origin.json": ("tune", ["SETTINGS"]),
    "small/journal.log": ("tune", ["SETTINGS"]),
}  # fmt: skip
OTHERS = (
    "cache/teachers/*/probes.pt",
    "cache/data/*/train.arrow.digest.json",
    "small/students/plain/*/seed-*.safetensors.digest.json",
    "small/unfinished/plain@1-16/0/state.pt",
    "small/unfinished/plain@1-16/0/manifest.json",
    "small/export/*/student.safetensors",
    "small/export/*/student.json",
    "small/export/*/predict.py",
)
"""Further files that are compared."""
KINDS = [*OPENED_BY, *OTHERS]


@pytest.fixture(scope="module")
def whole(searched: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of a finished search with an export and a checkpoint; not to be changed."""
    torch.set_num_threads(1)  # as in the tests: the same weights again, bit by bit
    storage = tmp_path_factory.mktemp("verified") / "storage"
    run = shutil.copytree(searched, storage) / "small"
    with pytest.MonkeyPatch.context() as patch:
        check_exports_here(patch)
        assert in_process("pick")([str(run) if word == "RUN" else word for word in PICK]) == 0
    save_checkpoint(run / "unfinished" / "plain@1-16" / "0", {"training": {"epoch": 1}})
    return storage


@pytest.fixture
def storage(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "storage"))


def call(storage: Path, command: str, arguments: list[str]) -> int:
    settings = overrides(*SETTINGS, "tracking.enabled=false", f"storage_path={storage}")
    places = {"RUN": [str(storage / "small")], "SETTINGS": [*settings, "--quiet"]}
    with without_ray():
        return in_process(command)([p for word in arguments for p in places.get(word, [word])])


def verify(storage: Path, *further: str) -> int:
    return in_process("verify")([str(storage / "small"), *further])


def find(storage: Path, pattern: str) -> Path:
    """Return the first file of a pattern."""
    export = next((storage / "small" / "export").iterdir())
    return sorted(storage.glob(pattern.replace("PICKED", export.name.split("-")[-1])))[0]


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)


def test_krscale_clean_leaves_what_a_run_rests_on(storage: Path) -> None:
    """The other tests of `krscale clean` are tests/cli/test_clean.py."""
    before = {path for path in storage.rglob("*") if path.is_file()}
    store = min((storage / "cache" / "stores").glob("[!.]*"))
    shutil.copytree(store, store.with_name("0123456789abcdef"))
    assert in_process("clean")(["--storage-path", str(storage), "--yes"]) == 0
    left = {path for path in storage.rglob("*") if path.is_file() and path.suffix != ".lock"}
    assert before - left <= {path for path in before if path.suffix == ".lock"}
    assert left <= before
    assert verify(storage) == 0


def test_a_whole_run_is_ok(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert verify(storage, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["note"] == ""
    assert {row["state"] for row in found["files"]} == {"ok"}
    compared = {row["path"] for row in found["files"]}
    missing = [
        p for p in KINDS if not p.endswith(".digest.json") and str(find(storage, p)) not in compared
    ]
    assert missing == []
    assert verify(storage) == 0
    assert capsys.readouterr().out == f"ok: all {len(compared)} files are what was written\n"


@pytest.mark.parametrize("num_places", [1, pytest.param(10, marks=pytest.mark.drill)])
@pytest.mark.parametrize("pattern", OPENED_BY)
def test_one_byte_is_refused_by_the_command_that_opens_it(
    pattern: str,
    num_places: int,
    storage: Path,
    capsys: pytest.CaptureFixture[str],
    drill: Drill,
) -> None:
    drill.injected("a byte changed in a file of a run", num_places)
    drill.must_hold("the command that opens it, and krscale verify, name it")
    file = find(storage, pattern)
    content, draw = file.read_bytes(), random.Random(pattern)
    for _ in range(num_places):
        at = draw.randrange(len(content))
        flip(file, at)
        capsys.readouterr()
        assert call(storage, *OPENED_BY[pattern]) in (1, 2), f"byte {at} is not missed"
        err = capsys.readouterr().err
        named = re.sub(r"-[0-9a-f]{16}\.arrow", "", "/".join(file.parts[-2:]))
        assert str(file) in err or named in err
        assert "Traceback" not in err
        assert re.search("[Dd]elete|[Rr]estore|repair|deleted", err), err
        assert verify(storage) == 1
        assert f"damaged: {file}" in capsys.readouterr().out
        file.write_bytes(content)
    assert verify(storage) == 0
    drill.held(f"{pattern}: each was named by both; put back, the run is whole")


@pytest.mark.parametrize("pattern", OTHERS)
def test_one_byte_of_other_files(
    pattern: str, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = find(storage, pattern)
    flip(file, file.stat().st_size // 2)
    assert verify(storage) == 1
    out = capsys.readouterr().out
    assert f"damaged: {file}" in out
    if "unfinished" in pattern:
        with pytest.raises(UserError, match=re.escape(str(file))):
            load_checkpoint(file.parent)
    if "export" in pattern and file.suffix != ".py":
        with pytest.raises(UserError, match=re.escape(str(file))):
            open_student(file.parent)


@pytest.mark.parametrize("make", [Path.unlink, Path.touch, Path.mkdir, os.mkfifo])
def test_a_journal_that_is_gone_or_no_file(
    make: Callable[[Path], None], storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = storage / "small" / "journal.log"
    if make is not Path.unlink:
        file.unlink()
    make(file)
    assert verify(storage) == 1
    assert f"damaged: {file}: damaged: it is " in capsys.readouterr().out


def test_the_record_for_mlflow(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spool = Spool(storage / "small" / "tracking" / "spool.jsonl")
    spool.append(Event("log", "kr", 5, {"metrics": {"a": 0.5}, "step": 1, "tags": {}}))
    spool.close()
    State(uri="sqlite:///x", experiment="e").write(spool.path.parent)
    assert verify(storage) == 0
    for file in (spool.path, spool.path.with_name("state.json")):
        flip(file, file.stat().st_size // 2)
        assert verify(storage) == 1
        assert f"damaged: {file}: damaged: " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["environment.json", "finished.json", "latency.json"])
@pytest.mark.parametrize("content", ["null", "[]", '"x"'])
def test_json_that_is_no_record(
    name: str, content: str, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (storage / "small" / name).write_text(content)
    assert verify(storage) == 1
    assert f"damaged: {storage / 'small' / name}: damaged: " in capsys.readouterr().out


def test_all_damaged_files_are_listed_at_once(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """This includes files that are found through damaged records."""
    files = {find(storage, pattern) for pattern in KINDS}
    files = {file for file in files if file.name not in ("experiment.json", "student.json")}
    for file in files:
        if not file.name.endswith(".digest.json"):
            flip(file, file.stat().st_size // 2)
    assert verify(storage, "--json") == 1
    rows = json.loads(capsys.readouterr().out)["files"]
    damaged = {row["path"] for row in rows if row["state"] == "damaged"}
    expected = {str(file) for file in files if not file.name.endswith(".digest.json")}
    assert damaged == expected
    assert all(
        re.search("[Dd]elete|[Rr]estore|pick", row["message"])
        for row in rows
        if row["state"] == "damaged"
    )


def test_what_is_said_brings_a_student_back(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Delete the file, run the same command: the same student is trained again."""
    file = find(storage, "small/students/kr/*/seed-*.safetensors")
    before, curve = file.read_bytes(), read_json(storage / "small" / "curve.json")
    flip(file, len(before) // 2)
    assert call(storage, "tune", ["SETTINGS"]) == 2
    assert f"Delete {file}; the command that ran the search" in capsys.readouterr().err
    file.unlink()
    assert verify(storage) == 1
    assert f"{file}: this file is missing" in capsys.readouterr().out
    assert call(storage, "tune", ["SETTINGS"]) == 0
    assert f"{file.relative_to(storage / 'small')} are gone" in capsys.readouterr().err
    assert file.read_bytes() == before
    assert verify(storage) == 0
    after = read_json(storage / "small" / "curve.json")
    assert [size["methods"]["kr"]["test_accuracies"] for size in after["sizes"]] == [
        size["methods"]["kr"]["test_accuracies"] for size in curve["sizes"]
    ]


@pytest.mark.parametrize("kind", ["data", "teachers", "stores"])
def test_what_is_said_brings_a_folder_of_the_cache_back(kind: str, storage: Path) -> None:
    folder = next(p for p in (storage / "cache" / kind).iterdir() if p.is_dir())
    shutil.rmtree(folder)
    assert call(storage, "tune", ["SETTINGS"]) == 0
    assert verify(storage) == 0


def test_shifted_labels_are_refused(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file is rewritten as a whole one, so that it shows no sign of the change."""
    from krscale.data.arrow import Split, read_split, write_split

    file = find(storage, "cache/data/*/test.arrow")
    split = read_split(file)
    write_split(file.with_name("other"), Split(split.images.copy(), (split.labels + 1) % 10))
    file.with_name("other").replace(file)
    assert call(storage, "tune", ["SETTINGS"]) == 2
    assert f"{file}: damaged" in capsys.readouterr().err


def test_a_gain_above_one_is_refused(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also in the record of an older krscale, which has no checksum."""
    file = find(storage, "cache/teachers/*/facts.json")
    content = read_json(file)
    content["information_gain"][1] = 9.5
    file.write_text(json.dumps(content))
    assert call(storage, "teach", ["SETTINGS"]) == 2
    assert f"{file}: damaged: information_gain.1: " in capsys.readouterr().err


def forget(storage: Path) -> None:
    """Remove what an older krscale did not write."""
    for file in storage.rglob("*.json"):
        if file.name.endswith(".digest.json"):
            file.unlink()
        else:
            content = json.loads(file.read_text())
            content.pop(CHECKSUM, None)
            file.write_text(json.dumps(content, indent=2) + "\n")


def test_an_older_run_goes_on_and_is_said_to_be_unverifiable(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forget(storage)
    assert verify(storage, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["files"]
    states = {row["path"]: row["state"] for row in rows}
    assert states[str(find(storage, "cache/teachers/*/probes.pt"))] == "unverifiable"
    assert states[str(find(storage, "cache/teachers/*/facts.json"))] == "unverifiable"
    assert states[str(find(storage, "small/students/kr/*/*.safetensors"))] == "unverifiable"
    for pattern in ("cache/data/*/train.arrow", "cache/stores/*/view-0000/*.arrow",
                    "cache/teachers/*/teacher.safetensors"):  # fmt: skip
        assert states[str(find(storage, pattern))] == "ok", "another record has its hash"
    assert call(storage, "tune", ["SETTINGS"]) == 0
    facts = find(storage, "cache/teachers/*/facts.json")
    assert CHECKSUM not in facts.read_text(), "nothing is vouched for that nobody has compared"
    assert not digest_path(facts.with_name("probes.pt")).exists()
    test = find(storage, "cache/data/*/test.arrow")
    flip(test, test.stat().st_size // 2)
    assert call(storage, "tune", ["SETTINGS"]) == 2
    assert f"{test}: damaged" in capsys.readouterr().err


def test_an_older_teacher_is_measured_without_being_vouched_for(storage: Path) -> None:
    forget(storage)
    file = find(storage, "cache/teachers/*/facts.json")
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "faults": None}))
    assert call(storage, "teach", ["SETTINGS"]) == 0
    assert read_json(file)["faults"] == content["faults"]
    assert CHECKSUM not in file.read_text()


def test_where_there_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process("verify")(["nosuch", "--storage-path", str(tmp_path)]) == 2
    assert "nosuch: no such run" in capsys.readouterr().err
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "experiment.json").touch()
    for command in ("verify", "insight", "sync", "store"):
        words = ["info"] if command == "store" else []
        assert in_process(command)([*words, "digit", "--storage-path", str(tmp_path)]) == 2
        expected = f"{tmp_path / 'digit'}: no such run. Did you mean 'digits'?"
        assert expected in capsys.readouterr().err
    assert in_process("verify")([str(tmp_path)]) == 2
    assert "it is the storage that runs are in; name one of them" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_not_searched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`krscale verify /` used to read the names of all files of the machine."""
    monkeypatch.setattr(Path, "rglob", pytest.fail)
    (tmp_path / "etc").mkdir()
    with pytest.raises(UserError, match="not the folder of a run"):
        verify_run(tmp_path)


def test_a_run_that_an_older_krscale_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`tests/runs/test_older_runs.py` continues and exports it."""
    unpack(Path(__file__).parents[1] / "runs" / "older" / "runs_3afaaac.tar.xz", tmp_path)
    run = tmp_path / "old"
    assert in_process("verify")([str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["note"] == ""
    states = {row["path"]: row["state"] for row in found["files"]}
    assert set(states.values()) == {"ok", "unverifiable"}
    kinds = {Path(path).suffix for path, state in states.items() if state == "ok"}
    assert ".arrow" in kinds
    test = next(tmp_path.glob("cache/data/*/test.arrow"))
    flip(test, test.stat().st_size // 2)
    assert in_process("verify")([str(run)]) == 1
    assert f"damaged: {test}" in capsys.readouterr().out
    place = ["--format", "safetensors", "--no-register", "--quiet"]
    assert in_process("pick")([str(run), "--max-params", "100k", *place]) == 2
    assert f"{test}: damaged" in capsys.readouterr().err
